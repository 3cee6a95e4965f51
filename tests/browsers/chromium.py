"""A headless Chromium, driven over the Chrome DevTools Protocol.

Names under .localhost lead to this machine, as in every Chromium; all other names lead nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeAlias

import aiohttp

Json: TypeAlias = Any
"""What the browser answers."""

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root, in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE *localhost",
)
_START_S = 30
_CALL_S = 60


def program() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, _PROGRAMS)), None)


class PageError(AssertionError):
    """A script of the page has failed."""


class Tab:
    """One tab. Mutable: it can be closed, or lose its process."""

    def __init__(self, browser: Chromium, target_id: str, session_id: str) -> None:
        self._browser = browser
        self._target_id = target_id
        self._session_id = session_id

    async def call(self, method: str, **params: Any) -> Json:
        """Call a method of the protocol."""
        return await self._browser.call(method, self._session_id, **params)

    async def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        await self.evaluate("window.isLeft = true")
        shown = await self.call("Page.navigate", url=url)
        assert "errorText" not in shown, shown
        await self.wait("!window.isLeft && document.readyState === 'complete'")

    async def evaluate(self, script: str) -> Json:
        """The value of an expression, or of its promise.

        Raises: PageError when it throws.
        """
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def wait(self, condition: str, timeout_s: float = 30) -> None:
        """Wait until an expression is true."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._is_true(condition):  # noqa: ASYNC110 - the page is another process
                    await asyncio.sleep(0.02)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"{condition} was not reached; the page shows: {text}") from None

    async def _is_true(self, condition: str) -> bool:
        with suppress(PageError):  # the page is loading
            return bool(await self.evaluate(f"Boolean({condition})"))
        return False

    async def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input, as a user does in the dialogue."""
        found = await self.call(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})"
        )
        object_id = found["result"]["objectId"]
        await self.call("DOM.setFileInputFiles", files=[str(path)], objectId=object_id)

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text,
            )  # fmt: skip

    async def size(self, width: int, height: int, scheme: str) -> None:
        """Set the size in CSS pixels and the colour scheme, "light" or "dark"."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def picture(self, path: Path) -> None:
        """Write what the whole page looks like, as PNG."""
        shown = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shown["data"]))

    async def kill(self) -> None:
        """End the tab's process, as the system does when memory is short, and close the tab."""
        await self._browser.post("Page.crash", self._session_id)
        await self.close()

    async def close(self) -> None:
        """Close the tab."""
        await self._browser.call("Target.closeTarget", targetId=self._target_id)


class Chromium:
    """A running browser with a profile of its own; an async context manager.

    Mutable: the connection and the calls that wait for an answer.
    """

    def __init__(self, folder: Path) -> None:
        self._home = folder
        self._profile = folder / "profile"
        self._numbers: Iterator[int] = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> Self:
        executable = program()
        assert executable is not None
        self._process = await asyncio.create_subprocess_exec(
            executable, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank",
            env={**os.environ, "HOME": str(self._home)},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            self._http = aiohttp.ClientSession()
            self._socket = await self._http.ws_connect(await self._address(), max_msg_size=0)
            self._reader = asyncio.create_task(self._read())
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._socket.close()
        await self._reader
        await self._end()

    async def _end(self) -> None:
        await self._http.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def _address(self) -> str:
        file = self._profile / "DevToolsActivePort"
        async with asyncio.timeout(_START_S):
            while True:
                lines = await asyncio.to_thread(lambda: file.exists() and file.read_text().split())
                if lines and len(lines) == 2:
                    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
                assert self._process.returncode is None, "Chromium has ended"
                await asyncio.sleep(0.05)

    async def _read(self) -> None:
        async for message in self._socket:
            answer = json.loads(message.data)
            waiting = self._answers.pop(answer.get("id"), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    async def post(self, method: str, session_id: str = "", **params: Any) -> asyncio.Future[Any]:
        """Call a method; the future is its whole answer."""
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": session_id} if session_id else {}))
        return answer

    async def call(self, method: str, session_id: str = "", **params: Any) -> Json:
        """Call a method and return its result."""
        async with asyncio.timeout(_CALL_S):
            answer = await (await self.post(method, session_id, **params))
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def tab(self) -> Tab:
        """Open a tab."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        tab = Tab(self, target, attached["sessionId"])
        await tab.call("Page.enable")
        return tab
