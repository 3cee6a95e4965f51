"""The HTTP interface: what is accepted is sent, once, and survives a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.engine.harness import PART, Desk, content, until
from uploader.bulk.rows import Root, RowRules
from uploader.devserver import DevServer, Fault
from uploader.errors import ConfigurationError, UploadLocked
from uploader.serve.http import Api, description, listening
from uploader.serve.jobs import Jobs
from uploader.serve.service import UploadService
from uploader.sources import UrlPolicy

TOKEN = "a token of the test's"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def desk(server: DevServer, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path)


class Client:
    """A client of a service. Mutable: its session."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session

    async def ask(
        self,
        method: str,
        path: str,
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        **given: Any,
    ) -> Any:  # noqa: ANN401 - JSON
        """Send a request and return the JSON of its answer, which must have this status."""
        headers = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
        async with self._session.request(
            method, f"{self._url}{path}", headers=headers, **given
        ) as answer:
            text = await answer.text()
            assert answer.status == status, text
            assert "no-store" in answer.headers["Cache-Control"]
            return json.loads(text) if text else None

    async def submit(self, path: Path | str, **fields: Any) -> dict[str, Any]:
        job: dict[str, Any] = await self.ask(
            "POST", "/v1/uploads", status=202, json={"path": str(path), **fields}
        )
        return job

    async def ended(self, job_id: int) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def has_ended() -> bool:
            found.update(await self.ask("GET", f"/v1/uploads/{job_id}", status=200))
            return found["ended_at"] is not None

        await until(has_ended)
        return found

    async def events(self, path: str) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self._session.get(f"{self._url}{path}", headers=headers) as answer:
            lines = (await answer.text()).splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


@asynccontextmanager
async def serving(
    desk: Desk, *, files: int = 4, origins: frozenset[str] = frozenset(), **options: Any
) -> AsyncIterator[Client]:
    """A service as one run of the command makes it."""
    async with AsyncExitStack() as stack:
        jobs = stack.enter_context(Jobs(desk.folder / "jobs" / "serve.db"))
        up = await stack.enter_async_context(desk.uploader(**options))
        rules = RowRules(root=Root.at(desk.folder), scope=up.scope)
        service = UploadService(up, jobs, rules, urls=UrlPolicy(), files=files)
        api = Api(service, TOKEN, origins=origins, is_socket=False)
        await stack.enter_async_context(service.running())
        url = await stack.enter_async_context(listening(api, ("127.0.0.1", 0)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Client(url, session)


async def test_a_file_is_uploaded_and_its_events_are_followed(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    async with serving(desk) as client:
        job = await client.submit("movie.mp4", title="A film")
        events = await client.events(f"/v1/uploads/{job['id']}/events")
        ended = await client.ended(job["id"])

    assert (ended["status"], ended["source"]) == ("done", str(movie))
    assert ended["result"]["size"] == 3 * PART
    assert isinstance(ended["result"]["crc64"], str)
    assert ended["video_id"] == ended["result"]["video_id"]
    assert events[0]["type"] == "upload"
    assert "upload.finished" in {event["type"] for event in events}
    assert events[-1]["status"] == "done"
    assert desk.server.videos[ended["video_id"]].title == "A film"


async def test_a_refused_request_says_what_is_wrong_and_keeps_nothing(desk: Desk) -> None:
    desk.file(PART, "note.txt")
    async with serving(desk) as client:
        for path, status in (
            ("missing.mp4", 422),
            ("note.txt", 422),
            ("/etc/passwd", 403),
            ("../outside.mp4", 403),
            ("http://[::1", 422),
        ):
            problem = await client.ask("POST", "/v1/uploads", status=status, json={"path": path})
            assert problem["detail"]
            assert problem["next_step"]
        await client.ask("POST", "/v1/uploads", status=400, data=b"{")
        await client.ask("POST", "/v1/uploads", status=400, data=b"[]")
        await client.ask("POST", "/v1/uploads", status=422, json={"path": "a.mp4", "priority": "1"})
        await client.ask("GET", "/v1/uploads/1", status=404)
        await client.ask("GET", "/v1/uploads?status=lost", status=422)
        await client.ask("PUT", "/v1/uploads/1", status=405)
        listed = await client.ask("GET", "/v1/uploads", status=200)

    assert listed == {"uploads": [], "next_before": None}


async def test_strangers_are_refused(desk: Desk) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with serving(desk, origins=frozenset({"https://studio.example"})) as client:
        await client.ask("GET", "/v1/health", status=200, headers={})
        await client.ask("GET", "/v1/uploads", status=401, headers={})
        wrong = {"Authorization": "Bearer wrong"}
        await client.ask("GET", "/v1/uploads", status=401, headers=wrong)
        rebound = {**bearer, "Host": "evil.example:80"}
        await client.ask("GET", "/v1/uploads", status=403, headers=rebound)
        foreign = {**bearer, "Origin": "https://evil.example"}
        await client.ask("GET", "/v1/uploads", status=403, headers=foreign)
        allowed = {**bearer, "Origin": "https://studio.example"}
        await client.ask("GET", "/v1/uploads", status=200, headers=allowed)
        await client.ask("OPTIONS", "/v1/uploads", status=204, headers=allowed)


async def test_the_same_file_is_requested_once_while_it_is_open(desk: Desk) -> None:
    desk.file(2 * PART)
    desk.order(Fault(action="delay", operation="InitiateMultipartUpload", delay_s=0.3))
    async with serving(desk) as client:
        first, second = [await client.submit("movie.mp4") for _ in range(2)]
        await client.ended(first["id"])
        third = await client.ended((await client.submit("movie.mp4"))["id"])

    assert first["id"] == second["id"] != third["id"]
    assert third["result"]["is_earlier_result"]
    assert desk.server.stats.creates == 1


async def test_the_most_urgent_is_sent_first(desk: Desk) -> None:
    for name in ("first", "later", "urgent"):
        desk.file(PART, f"{name}.mp4", seed=len(name))
    desk.order(Fault(action="delay", operation="PutObject", delay_s=0.2, count=1))
    async with serving(desk, files=1) as client:
        first = await client.submit("first.mp4")
        later = await client.submit("later.mp4")
        urgent = await client.submit("urgent.mp4", priority=10)
        ends = [(await client.ended(job["id"]))["ended_at"] for job in (first, urgent, later)]

    assert ends == sorted(ends)


async def test_a_paused_upload_lets_the_next_one_go_and_resumes(desk: Desk) -> None:
    big = desk.file(24 * PART)
    desk.file(PART, "small.mp4")
    desk.server.set_options(bandwidth=2e6)
    async with serving(desk, files=1) as client:
        job = await client.submit(big)
        path = f"/v1/uploads/{job['id']}"
        await until(lambda: desk.server.stats.parts_stored >= 2)
        paused = await client.ask("POST", f"{path}/pause", status=200)
        small = await client.ended((await client.submit("small.mp4"))["id"])
        still = await client.ask("GET", path, status=200)
        desk.server.set_options(bandwidth=None)
        await client.ask("POST", f"{path}/resume", status=200)
        ended = await client.ended(job["id"])

    assert (paused["status"], still["status"], small["status"]) == ("paused", "paused", "done")
    assert ended["status"] == "done"
    assert desk.server.stats.creates == 2


async def test_a_cancelled_upload_resumes_with_its_parts_and_is_forgotten(desk: Desk) -> None:
    big = desk.file(24 * PART)
    desk.server.set_options(bandwidth=2e6)
    async with serving(desk) as client:
        job = await client.submit(big)
        path = f"/v1/uploads/{job['id']}"
        await until(lambda: desk.server.stats.parts_stored >= 2)
        await client.ask("DELETE", path, status=422)
        cancelled = await client.ask("POST", f"{path}/cancel", status=200)
        desk.server.set_options(bandwidth=None)
        resumed = await client.ask("POST", f"{path}/resume", status=200)
        ended = await client.ended(job["id"])
        await client.ask("DELETE", path, status=204)
        await client.ask("GET", path, status=404)

    assert (cancelled["status"], resumed["status"]) == ("cancelled", "running")
    assert ended["result"]["resumed_part_count"] >= 2
    assert desk.server.stats.creates == 1


async def test_a_cancel_at_any_moment_leaves_the_service_running(desk: Desk) -> None:
    async with serving(desk) as client:
        for number in range(12):
            desk.file(PART, f"{number}.mp4", seed=number)
            job = await client.submit(f"{number}.mp4")
            await asyncio.sleep(number * 0.004)
            await client.ask("POST", f"/v1/uploads/{job['id']}/cancel", status=200)
        desk.file(PART, "last.mp4", seed=99)
        last = await client.ended((await client.submit("last.mp4"))["id"])

    assert last["status"] == "done"


async def test_cancel_with_abort_removes_the_parts(desk: Desk) -> None:
    big = desk.file(24 * PART)
    desk.server.set_options(bandwidth=2e6)
    async with serving(desk) as client:
        job = await client.submit(big)
        await until(lambda: desk.server.stats.parts_stored >= 2)
        await client.ask("POST", f"/v1/uploads/{job['id']}/cancel?abort=true", status=200)

    assert desk.server.stats.aborts == 1


async def test_what_was_accepted_goes_on_after_a_restart(desk: Desk) -> None:
    big = desk.file(24 * PART)
    desk.file(PART, "small.mp4")
    desk.server.set_options(bandwidth=2e6)
    async with serving(desk, files=1) as client:
        job, waiting = await client.submit(big), await client.submit("small.mp4")
        await until(lambda: desk.server.stats.parts_stored >= 2)
    desk.server.set_options(bandwidth=None)
    async with serving(desk, files=1) as client:
        ended = [await client.ended(each["id"]) for each in (job, waiting)]

    assert [each["status"] for each in ended] == ["done", "done"]
    assert ended[0]["result"]["resumed_part_count"] >= 2
    assert desk.server.stats.creates == 2


async def test_a_failed_upload_has_its_reason_and_is_tried_again(desk: Desk) -> None:
    desk.file(2 * PART)
    desk.server.set_options(denied_operations=("UploadPart",))
    async with serving(desk) as client:
        job = await client.submit("movie.mp4")
        failed = await client.ended(job["id"])
        desk.server.set_options(denied_operations=())
        await client.ask("POST", f"/v1/uploads/{job['id']}/resume", status=200)
        done = await client.ended(job["id"])

    assert (failed["status"], failed["error"]["title"]) == ("failed", "PermissionDenied")
    assert failed["error"]["next_step"]
    assert (done["status"], done["error"]) == ("done", None)


async def test_a_body_is_stored_while_it_arrives(desk: Desk) -> None:
    data = content(3 * PART)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    async with serving(desk) as client:
        for body in (data, pieces()):
            result = await client.ask(
                "PUT", "/v1/videos?title=Live&file_name=live.ts", status=201, data=body
            )
            assert result["size"] == len(data)
        await client.ask("PUT", "/v1/videos", status=422, data=b"")

    assert {video.title for video in desk.server.videos.values()} == {"Live"}


async def test_a_body_that_breaks_off_is_no_video(desk: Desk) -> None:
    async with serving(desk) as client:
        _, port = client._url.removeprefix("http://").split(":")
        for header in ("Content-Length: 300000", "Transfer-Encoding: chunked"):
            _, writer = await asyncio.open_connection("127.0.0.1", int(port))
            piece = b"x" * 150_000
            chunk = piece if "Length" in header else b"%x\r\n%b\r\n" % (len(piece), piece)
            writer.write(
                f"PUT /v1/videos?file_name=a.mp4 HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {TOKEN}\r\n{header}\r\n\r\n".encode()
                + chunk
            )
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
        await asyncio.sleep(0.3)

    assert desk.server.stats.completes == 0
    assert desk.count("PutObject") == 0


def test_two_services_do_not_share_a_file_of_jobs(tmp_path: Path) -> None:
    with Jobs(tmp_path / "serve.db"), pytest.raises(UploadLocked):
        Jobs(tmp_path / "serve.db")


async def test_a_unix_socket_is_private_and_a_stale_one_is_replaced(
    desk: Desk, tmp_path: Path
) -> None:
    path = tmp_path / "vodup.sock"
    with Jobs(tmp_path / "serve.db") as jobs:
        async with desk.uploader() as up:
            rules = RowRules(root=Root.at(desk.folder))
            service = UploadService(up, jobs, rules, urls=UrlPolicy(), files=1)
            api = Api(service, TOKEN, origins=frozenset(), is_socket=True)
            async with listening(api, str(path)):
                assert path.stat().st_mode & 0o777 == 0o600
                with pytest.raises(ConfigurationError, match="another service"):
                    async with listening(api, str(path)):
                        pass
                connector = aiohttp.UnixConnector(str(path))
                async with aiohttp.ClientSession(connector=connector) as session:
                    await Client("http://any", session).ask("GET", "/v1/uploads", status=200)
            path.touch()
            with pytest.raises(ConfigurationError, match="is no socket"):
                async with listening(api, str(path)):
                    pass


def test_the_description_has_all_routes() -> None:
    described = {
        (method.upper(), path)
        for path, methods in json.loads(description())["paths"].items()
        for method in methods
        if method != "parameters"
    }
    api = Api(None, TOKEN, origins=frozenset(), is_socket=False)  # type: ignore[arg-type]
    routes = {
        (route.method, str(route.resource.canonical))
        for route in api.application().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert described == {(method, path.replace("{id:[0-9]+}", "{id}")) for method, path in routes}
