"""A jobs API that tests script: states, logs, refusals, and connections that break."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import ray
from aiohttp import web

WHOLE, SILENT = -1, -2


@dataclass
class FakeJob:
    """A job, and what the API does about it."""

    state: str = "RUNNING"
    log: str = ""
    command: str = "python work.py"
    # What each connection that follows the log does, in order; the last one again and again: send
    # so many characters of the log and break off; WHOLE: all of it, and close in good order;
    # SILENT: say nothing.
    tails: list[int] = field(default_factory=lambda: [WHOLE])
    # States that questions for the job are answered with, before ``state``.
    states: list[str] = field(default_factory=list)
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class FakeCluster:
    """Answers on loopback as Ray's dashboard does; ``with FakeCluster() as cluster``."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        # Status and text instead of any answer about jobs.
        self.refusal: tuple[int, str] | None = None
        # Connections are cut before an answer.
        self.is_down = False
        self.tailed: list[str] = []
        self.submitted: list[dict[str, Any]] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakeCluster:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/packages/{tail:.*}", self._package)
        app.router.add_get("/api/jobs/{job}", self._job)
        app.router.add_get("/api/jobs/{job}/logs", self._logs)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.address = f"http://127.0.0.1:{port}"

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.submitted.append(body)
        self.jobs[body["submission_id"]] = FakeJob(
            state="SUCCEEDED", command=body["entrypoint"], metadata=body["metadata"]
        )
        return web.json_response(
            {"job_id": body["submission_id"], "submission_id": body["submission_id"]}
        )

    def _refused(self, request: web.Request) -> web.Response | None:
        if self.is_down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.refusal:
            return web.Response(status=self.refusal[0], text=self.refusal[1])
        name = request.match_info.get("job")
        if name is not None and name not in self.jobs:
            return web.Response(status=404, text=f"Job {name} does not exist")
        return None

    async def _job(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        name = request.match_info["job"]
        job = self.jobs[name]
        state = job.states.pop(0) if job.states else job.state
        details = {
            "type": "SUBMISSION",
            "job_id": None,
            "submission_id": name,
            "status": state,
            "entrypoint": job.command,
            "message": job.message,
            "metadata": job.metadata,
        }
        return web.json_response(details)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        return web.json_response({"logs": self.jobs[request.match_info["job"]].log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        name = request.match_info["job"]
        job = self.jobs[name]
        self.tailed.append(name)
        sent = job.tails.pop(0) if len(job.tails) > 1 else job.tails[0]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if sent == SILENT:
            await socket.receive()
            return socket
        text = job.log if sent == WHOLE else job.log[:sent]
        # In pieces that don't keep to lines, as Ray sends long ones.
        for start in range(0, len(text), 7):
            await socket.send_str(text[start : start + 7])
        if sent != WHOLE:
            assert request.transport is not None
            # What was sent has to arrive first.
            await asyncio.sleep(0.05)
            request.transport.abort()
        return socket
