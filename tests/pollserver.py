"""A small web server that answers the poller's requests from a script for each job.

It serves pages and the real job-state.js under a strict Content Security Policy, and
records each request. With `offers`, polls offer a stream, and the test writes what each
stream sends, or scripts how it is refused.
"""

import dataclasses
import json
import mimetypes
import queue
import select
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support import PACKAGE

BELOW = "/job_state"

STATIC = PACKAGE / "static"

POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; "
    "require-trusted-types-for 'script'"
)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Poller</title>
<script src="/job-state.js"></script><script src="/harness.js"></script>
"""

# Runs in the page: starts pollers and records the calls of their callbacks.
HARNESS = """
"use strict";
const calls = [], raw = [], pollers = {}, aborters = {}, asked = [], sources = [];
let answered = 0;

window.EventSource = class extends EventSource {
  constructor(...options) {
    super(...options);
    sources.push(this);
  }
};

const reallyFetch = window.fetch;
window.fetch = (url, init) => {
  asked.push(url);
  const answer = reallyFetch(url, init);
  const count = () => { answered += 1; };
  answer.then((response) => response.clone().text()).then(count, count);
  return answer;
};

const plain = (value) => {
  if (value instanceof Error) return { message: value.message, ...value };
  if (value && "outcome" in value) return { ...value, reason: plain(value.reason) };
  return value;
};

function follow(name, options = {}, { callbacks, throwing = [], stopIn } = {}) {
  const all = { jobUuid: name, pollingPeriod: 50, ...options };
  if (all.signal) {
    aborters[name] = new AbortController();
    if (all.signal === "aborted") aborters[name].abort();
    all.signal = aborters[name].signal;
  }
  for (const callback of callbacks || ["update", "success", "error", "lost"]) {
    all[callback] = (value) => {
      raw.push(value);
      calls.push({ name, callback, value: plain(value) });
      if (stopIn === callback) pollers[name].stop();
      if (throwing.includes(callback)) throw new Error(`thrown in ${callback}`);
    };
  }
  pollers[name] = JobState.startPolling(all);
  pollers[name].done.then((value) =>
    calls.push({ name, callback: "done", value: plain(value) })
  );
}

const cancel = (name) => pollers[name].cancel().catch((error) =>
  ({ rejected: error instanceof Error, ...plain(error) }));

function setHidden(hidden) {
  const define = (name, value) =>
    Object.defineProperty(Document.prototype, name, {
      configurable: true, get: () => value });
  define("hidden", hidden);
  define("visibilityState", hidden ? "hidden" : "visible");
  document.dispatchEvent(new Event("visibilitychange"));
}
"""


@dataclasses.dataclass
class Answer:
    """A scripted answer; `drop` closes the connection, `hold` waits for an event, or
    keeps a request for a stream until the page gives up.
    """

    status: int = 200
    body: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    delay: float = 0.0
    hold: threading.Event | None = None
    drop: bool = False


class Request:
    """A recorded request: header names in lower case, times monotonic."""

    def __init__(self, method: str, path: str, headers: Any) -> None:
        self.method = method
        self.path = path
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.began = time.monotonic()
        self.ended: float | None = None

    @property
    def jobs(self) -> list[str]:
        """The uuids of a request for several jobs."""
        return parse_qs(urlsplit(self.path).query).get("uuid", [])


class Stream(Request):
    """A stream that a page has opened. The test says what it sends and when it ends."""

    def __init__(self, path: str, headers: Any) -> None:
        super().__init__("GET", path, headers)
        self._steps: queue.Queue[bytes | None] = queue.Queue()

    @property
    def is_open(self) -> bool:
        return self.ended is None

    def send(self, data: str, event: str = "message", event_id: str = "") -> None:
        place = f"id: {event_id}\n" if event_id else ""
        self.write(f"event: {event}\n{place}data: {data}\n\n")

    def write(self, text: str) -> None:
        """Send text as it is."""
        self._steps.put(text.encode())

    def end(self) -> None:
        self._steps.put(None)

    def serve(self, connection: socket.socket) -> None:
        """Send what the test writes, until it ends the stream or the page leaves."""
        with suppress(OSError):
            while True:
                readable, _, _ = select.select([connection], [], [], 0)
                if readable and connection.recv(1) == b"":
                    break
                with suppress(queue.Empty):
                    step = self._steps.get(timeout=0.01)
                    if step is None:
                        break
                    connection.sendall(step)


def state(job_state: str = "working", **metrics: Any) -> str:
    """The JSON of a job, as the views return it."""
    job: dict[str, Any] = {"uuid": "…", "status": job_state, "error": None}
    if job_state == "error":
        job["error"] = {"message": "The job failed."}
    return json.dumps({**metrics, "job_state": job_state, "job": job})


def uuid_of(number: int) -> str:
    """A uuid that is easy to tell from others."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def working(etag: str | None = None, **metrics: Any) -> Answer:
    headers = {"ETag": etag} if etag else {}
    return Answer(body=state("working", **metrics), headers=headers)


def success(**metrics: Any) -> Answer:
    return Answer(body=state("success", **metrics))


def error(**metrics: Any) -> Answer:
    return Answer(body=state("error", **metrics))


def held(body: str = "") -> Answer:
    """An answer that does not come before its event is set."""
    return Answer(body=body or state("working"), hold=threading.Event())


def release(answer: Answer) -> None:
    """Let an answer come that is held back."""
    assert answer.hold is not None
    answer.hold.set()


class PollServer:
    """Answers each path from its own script, and repeats the last answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.scripts: dict[tuple[str, str], list[Answer]] = {}  # by method and path
        self._batches: list[Answer] = []
        self.pages = {"/page": PAGE}
        self.policy = POLICY
        self.nulls: set[str] = set()  # jobs answered with null in batches
        self.max_uuids = 1000  # polls and streams of more jobs get a 400
        self.room = 1000  # how many jobs an answer has room for
        self.offers = False  # polls offer a stream
        self.refusals: list[Answer] = []  # to the next requests for a stream
        self.stream_headers: dict[str, str] = {}
        self.streams: list[Stream] = []  # so far, without those that were refused
        self.refused: list[Stream] = []
        self.heard: list[Request] = []
        self.held: list[Answer] = []
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen on the same port as before."""
        # With the usual queue of 5, some connections of a browser are lost for minutes.
        listening = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})
        handler = type("Handler", (_Handler,), {"poll_server": self})
        self._httpd = listening(("127.0.0.1", self._port), handler)
        self._port = self._httpd.server_address[1]
        self._thread = threading.Thread(
            target=self._httpd.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections until started again."""
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()

    def close(self) -> None:
        for answer in self.held:
            release(answer)
        self.stop()

    def answer(
        self, name: str, *answers: Answer, method: str = "GET", below: str = BELOW
    ) -> None:
        """Script the answers for a job, from now on."""
        with self._lock:
            self.scripts[method, f"{below}/{name}"] = list(answers)

    def answer_batches(self, *answers: Answer) -> None:
        """Script the answers to the next requests for several jobs."""
        with self._lock:
            self._batches = list(answers)

    def seen(self, name: str, method: str = "GET", below: str = BELOW) -> list[Request]:
        """The requests so far for one job, alone or with others."""
        return [
            request
            for request in self.requests(method, below)
            if name in request.jobs or urlsplit(request.path).path == f"{below}/{name}"
        ]

    def requests(self, method: str = "GET", below: str = BELOW) -> list[Request]:
        """All requests so far below a base URL."""
        return [
            request
            for request in [*self.heard]
            if request.method == method and request.path.startswith(below)
        ]

    @property
    def open_streams(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.is_open]

    def next_answer(self, method: str, path: str, uuids: list[str]) -> Answer:
        with self._lock:
            if not uuids:
                return self._next(method, path)
            if len(uuids) > self.max_uuids:
                return Answer(400)
            if self._batches:
                return self._batches.pop(0)
            uuids = uuids[: self.room]
            shown = [uuid for uuid in uuids if uuid not in self.nulls]
            answers = {uuid: self._next(method, f"{path}/{uuid}") for uuid in shown}
        for answer in answers.values():
            if answer.hold is not None or answer.status not in (200, 404):
                return answer
        jobs = dict.fromkeys(uuids) | {
            uuid: json.loads(answer.body)
            for uuid, answer in answers.items()
            if answer.status == 200
        }
        first = answers[shown[0]] if shown else Answer()
        return dataclasses.replace(first, status=200, body=json.dumps({"jobs": jobs}))

    def _next(self, method: str, path: str) -> Answer:
        answers = self.scripts.get((method, path), [Answer(404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def refusal_of(self, stream: Stream) -> Answer | None:
        """Record a request for a stream, and return how to refuse it, or None."""
        with self._lock:
            refusal = None
            if len(stream.jobs) > self.max_uuids:
                refusal = Answer(400)
            elif self.refusals:
                refusal = self.refusals.pop(0)
            (self.refused if refusal else self.streams).append(stream)
            return refusal


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, since a stopped server would go on answering on kept connections.
    poll_server: PollServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        file = STATIC / path.rpartition("static/")[2].lstrip("/")
        if path in self.poll_server.pages:
            cookie = {"Set-Cookie": "session=alice"}
            headers = {"Content-Security-Policy": self.poll_server.policy, **cookie}
            self._send_file("text/html", self.poll_server.pages[path], headers)
        elif ("GET", path) in self.poll_server.scripts:
            self._answer()
        elif file.is_file():
            kind = mimetypes.guess_type(path)[0] or "text/plain"
            self._send_file(kind, file.read_text("utf-8"), {})
        elif path == "/harness.js":
            self._send_file("text/javascript", HARNESS, {})
        elif path in ("/empty", "/favicon.ico"):
            self._send_file("text/html", "", {})
        else:
            self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.headers["Accept"] == "text/event-stream":
            self._stream()
            return
        url = urlsplit(self.path)
        uuids = parse_qs(url.query).get("uuid", [])
        request = Request(self.command, self.path, self.headers)
        self.poll_server.heard.append(request)
        answer = self.poll_server.next_answer(self.command, url.path, uuids)
        if answer.hold is not None:
            self.poll_server.held.append(answer)
            answer.hold.wait(20)
        time.sleep(answer.delay)
        request.ended = time.monotonic()
        headers = {"Cache-Control": "private, no-store", **answer.headers}
        if self.poll_server.offers and answer.status in (200, 304):
            headers["JobState-Stream"] = "1"
        if not answer.drop:
            self._send(dataclasses.replace(answer, headers=headers))

    def _stream(self) -> None:
        stream = Stream(self.path, self.headers)
        refusal = self.poll_server.refusal_of(stream)
        if refusal is None:
            kind = {"Content-Type": "text/event-stream"}
            self._begin(200, {**kind, **self.poll_server.stream_headers})
            stream.write("retry: 50\n\n")
        if refusal is None or refusal.hold is not None:
            stream.serve(self.connection)
        elif not refusal.drop:
            self._send(refusal)
        stream.ended = time.monotonic()

    def _send_file(self, kind: str, body: str, headers: dict[str, str]) -> None:
        headers = {**headers, "Content-Type": f"{kind}; charset=utf-8"}
        self._send(Answer(body=body, headers=headers))

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode("utf-8")
        headers = {"Content-Type": "application/json", **answer.headers}
        if answer.status != 304:
            headers["Content-Length"] = str(len(body))
        self._begin(answer.status, headers)
        with suppress(OSError):  # some tests close the browser meanwhile
            self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Log nothing."""
