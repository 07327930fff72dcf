"""Pages of a real application and a real store, in a real browser."""

import contextlib
import queue
from collections.abc import Callable
from typing import Any, Self, cast

import dramatiq.broker
from playwright.sync_api import Locator, Page, expect
from pyramid.config import Configurator
from pyramid.registry import Registry
from pyramid.request import Request, apply_request_extensions
from transaction import TransactionManager
from webtest import TestApp

from pyramid_jobstate import Batch, JobError, JobState, JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.browser.sites import Site
from tests.jobs import Alarm, RunMarathon, job_actor, make_broker, working
from tests.support import ROOT, wait_for
from tests.web.operating import OPERATOR
from tests.webapp import make_app

#: Where the tests put pictures, which CI keeps.
PICTURES = ROOT / "build" / "screenshots"

POLICY = (
    "default-src 'self'; require-trusted-types-for 'script'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

#: Whether a page is wider than its window.
IS_WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


class Runner:
    """A worker in this process, whose jobs do what the test says until it ends them."""

    def __init__(self, redis_url: str, of: type[JobState] = RunMarathon) -> None:
        #: Holds jobs that are to be tried again, until it rings.
        self.alarm = Alarm()
        self._broker = make_broker(redis_url, others=(self.alarm,))
        self._orders: dict[str, queue.Queue[Callable[[Any], object] | None]] = {}
        self._stack = contextlib.ExitStack()
        self._store = JobStore(redis_url)

        @job_actor(broker=self._broker, max_retries=0, job_state=of)
        def run_marathon(miles: int = 26, *, job_state: Any) -> None:
            while (order := self._orders[job_state.uuid].get(timeout=60)) is not None:
                order(job_state)

        self._actor = run_marathon

    def __enter__(self) -> Self:
        self._before = dramatiq.broker.global_broker
        dramatiq.broker.global_broker = self._broker  # of the requests of applications
        self._stack.enter_context(working(self._broker))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.alarm.ring()
        for orders in self._orders.values():
            orders.put(None)
        self._stack.close()
        dramatiq.broker.global_broker = self._before
        self._broker.close()
        self._store.client.close()

    def start(self, owner: str | None = "alice", **options: Any) -> str:
        """Send a job, wait until it runs, and return its uuid."""
        message = self._actor.message_with_options(job_owner=owner, **options)
        self._orders[message.message_id] = queue.Queue()
        self._broker.enqueue(message)
        self.wait_for(message.message_id, "working")
        return message.message_id

    def start_batch(self, registry: Registry, count: int) -> tuple[str, list[str]]:
        """Send a batch of Alice's, wait until its members run, and return all uuids."""
        request = Request.blank("/", headers={"X-User": "alice"})
        request.registry = registry
        request.tm = TransactionManager(explicit=True)
        apply_request_extensions(request)
        with request.tm, request.job_states.batch(Batch) as batch:
            members = [batch.send(self._actor).uuid for _ in range(count)]
            for uuid in members:
                self._orders[uuid] = queue.Queue()
        for uuid in members:
            self.wait_for(uuid, "working")
        return batch.uuid, members

    def tell(self, uuid: str, order: Callable[[Any], object]) -> None:
        """Have a job that runs do something."""
        self._orders[uuid].put(order)

    def finish(self, uuid: str) -> None:
        """Let a job succeed."""
        self._orders[uuid].put(None)
        self.wait_for(uuid, "success")

    def fail(self, uuid: str, problem: Exception) -> None:
        """Let a job fail."""

        def order(job_state: Any) -> None:
            raise problem

        self._orders[uuid].put(order)
        self.wait_for(uuid, "error", "retrying")

    def wait_for(self, uuid: str, *statuses: str) -> None:
        def reached() -> bool:
            state = self._store.load(uuid)
            return state is not None and state.status in statuses

        wait_for(reached)


class Pages(Site):
    """An application with pages, under a strict policy, and a browser in it.

    Attributes:
      refuse: Returns the status with which a request is refused, or None. 0 breaks the
        connection.
      changes: The requests so far that were to change something: method and path.
    """

    def __init__(self, page: Page, app: Configurator | TestApp) -> None:
        super().__init__(page)
        self.user = OPERATOR
        self.refuse: Callable[[str], int | None] = lambda method: None
        self.changes: list[tuple[str, str]] = []
        self.serve(app)

    def serve(self, app: Configurator | TestApp) -> None:
        """Serve an application, or that of a configurator that has included pages."""
        self._app = (make_app(app) if isinstance(app, Configurator) else app).app

    @property
    def registry(self) -> Registry:
        """The registry of the application."""
        return cast(Registry, self._app.registry)

    def dispatch(self, environ: Any, start_response: Any) -> Any:
        method = environ["REQUEST_METHOD"]
        if method != "GET":
            self.changes.append((method, environ["PATH_INFO"]))
        status = self.refuse(method)
        if status == 0:
            raise ConnectionAbortedError
        if status is not None:
            location = ("Location", "/login")
            start_response(f"{status} No", [location] if status == 302 else [])
            return []

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            policy = ("Content-Security-Policy", POLICY)
            return start_response(status, [*headers, policy], exc_info)

        return super().dispatch(environ, start)

    def visit(self, path: str = "/job_state") -> None:
        """Open a page, and wait until each of its elements shows its job."""
        self.page.goto(self.url + path)
        self.settle()

    def settle(self) -> None:
        """Wait until each element of the page shows its job."""
        waiting = "job-state:not([state]), job-state[state=loading]"
        expect(self.page.locator(waiting)).to_have_count(0)

    def one(self, name: str) -> Locator:
        """Return the part of a page that its script calls by a name."""
        return self.page.locator(f"[data-jobstate={name}]")

    def row(self, uuid: str) -> Locator:
        return self.page.locator(f"tr[data-uuid='{uuid}']")

    @property
    def uuids(self) -> list[str]:
        """The jobs in the rows on the page now. Right after a navigation there may be
        none: see `expect_uuids()`.
        """
        script = "rows => rows.map(row => row.dataset.uuid)"
        return list(self.page.locator("tr[data-uuid]").evaluate_all(script))

    def confirm(self, act: str, question: str) -> None:
        """Press a button, read the question, and say yes."""
        self.page.get_by_role("button", name=act).click()
        expect(self.one("question")).to_have_text(question)
        self.one("yes").click()

    def expect_said(self, text: str) -> None:
        """Expect that the page says what became of an act, and has the focus there."""
        expect(self.one("said")).to_have_text(text)
        expect(self.one("said")).to_be_focused()
        expect(self.one("dialog")).to_be_hidden()

    def expect_uuids(self, *uuids: str) -> None:
        """Wait until the rows are those of these jobs, in this order."""
        rows = self.page.locator("tr[data-uuid]")
        expect(rows).to_have_count(len(uuids))
        for n, uuid in enumerate(uuids):
            expect(rows.nth(n)).to_have_attribute("data-uuid", uuid)

    def picture(self, name: str) -> None:
        """Keep a picture of the page."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


class ImportSheet(JobState):
    """A kind of job that has a title, and tells the world of its file."""

    public_params = ("filename",)

    @property
    def title(self) -> str:
        return f"Import of {self.get_job_param('filename')}"


def fill(store: JobStore, count: int = 18) -> list[str]:
    """Put jobs of all statuses and several owners, and return their uuids."""
    statuses = (
        *("queued", "working", "retrying", "cancelling", "success", "cancelled"),
        *("error", "working", "success"),
    )
    found = []
    for n in range(count):
        status = statuses[n % len(statuses)]
        rows = Progress(1_000 * n, 20_000, "rows")
        job = put_job(
            store,
            ImportSheet,
            status,
            owner=("alice", "bob", None)[n % 3],
            params={"filename": ("boston.csv", "all the results.csv")[n % 2]},
            progress=None if status == "queued" else rows,
            message="Waiting for the database" if n % 3 else None,
            log=["Line 17: bib 4 is taken", "Line 90: the name is missing"],
            metrics={"rows_written": n, "rows_rejected": 3, "runner": "Ruth"},
            error=JobError("ValueError", "bib 4") if status == "error" else None,
            attempt=1 + n % 3,
            delay=90 if status == "retrying" else 7200 * (n == 0),
        )
        found.append(job.uuid)
    return found
