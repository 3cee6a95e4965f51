"""In a network namespace where VOD's host is loopback: the server, and a client of fixed hosts.

``python -m tests.devserver.namespace PYTHON SOURCE RESULT`` writes the server's answers to RESULT.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from uploader.devserver import DevServerOptions, ThreadedDevServer

FAULTS = [
    {"operation": "UploadPart", "part": 2, "action": "error", "status": 503,
     "code": "ServiceUnavailable", "count": 1},
    {"operation": "UploadPart", "part": 4, "action": "expire_credentials", "count": 1},
]  # fmt: skip


def main(python: str, source: str, result: str) -> int:
    with ThreadedDevServer(DevServerOptions(port=80), FAULTS) as threaded:
        server = threaded.server
        job = {"step": "voduploadsdk", "source": source}
        job |= {"id": server.access_key_id, "secret": server.access_key_secret}
        done = subprocess.run(
            [python, str(Path(__file__).with_name("foreign.py"))],
            input=json.dumps(job), text=True, check=False, timeout=80,
        )  # fmt: skip
        film = Path(source).read_bytes()
        stored = [server.objects(v)[server.videos[v].object_key] for v in server.videos]
        Path(result).write_text(json.dumps({"answers": list(server.stats.answers)}))
        return done.returncode or film not in stored


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
