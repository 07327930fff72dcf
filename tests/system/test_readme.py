"""The README is true: its snippets run, and the names in it exist."""

import ast
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docutils.core
import pytest
from playwright.sync_api import expect
from pyramid.exceptions import ConfigurationError

import pyramid_jobstate
from pyramid_jobstate import Progress, testing
from tests.catalogs import write_catalog
from tests.jobs import RunMarathon
from tests.pollserver import Answer, PollServer, error, success, working
from tests.processes import Process, run_python
from tests.readme import DOCUMENTS, PAGES, README, page, snippets
from tests.support import PACKAGE, ROOT, wait_for
from tests.webapp import get, made_config, make_app, make_config, make_request

SECURITY = """
from pyramid.authorization import ACLHelper, Everyone


class SecurityPolicy:
    def identity(self, request):
        return request.environ.get("REMOTE_USER")

    authenticated_userid = identity

    def permits(self, request, context, permission):
        principals = [Everyone, self.identity(request)]
        return ACLHelper().permits(context, principals, permission)
"""


#: The rest of the application to which the README adds lines.
MAIN = """
from pyramid.config import Configurator

from myapp.security import SecurityPolicy


def main(global_config, **settings):
    with Configurator(settings=settings) as config:
        config.set_security_policy(SecurityPolicy())
{lines}
        return config.make_wsgi_app()
"""

#: Gives the application sessions, which a parameter fills.
SESSIONS = """
from pyramid.session import SignedCookieSessionFactory


def fill(event):
    if "customer" in event.request.params:
        event.request.session["customer"] = event.request.params["customer"]


def includeme(config):
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    config.add_subscriber(fill, "pyramid.events.NewRequest")
"""

#: Gives the application the root that lets admins operate.
ROOTED = """
def includeme(config):
    config.set_root_factory("myapp.operators.OperatedRoot")
"""

#: Gives the application a database, as Pyramid's cookiecutter does.
DATABASE = """
import zope.sqlalchemy
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker


def includeme(config):
    engine = config.registry["engine"] = create_engine("sqlite:///app.sqlite")
    factory = sessionmaker(engine)

    def dbsession(request):
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    config.add_request_method(dbsession, reify=True)
"""

#: What the programs below begin with.
PRELUDE = """
import os
import time
import dramatiq
from webtest import TestApp
from myapp import main
from myapp.jobs import RunMarathon, run_marathon
from pyramid.scripting import prepare
from pyramid_jobstate import JobStore, testing

redis_url = os.environ["REDIS_URL"]
store = JobStore(redis_url)
alice, bob = {"REMOTE_USER": "alice"}, {"REMOTE_USER": "bob"}


def visit(**settings):
    return TestApp(main({}, **settings), extra_environ=alice)


def including(names):
    return visit(**{"pyramid.includes": names})


def work(until):
    worker = dramatiq.Worker(dramatiq.get_broker(), worker_timeout=50, worker_threads=2)
    worker.start()
    deadline = time.monotonic() + 30
    while not (found := until()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.stop()
    return found
"""

#: Serves the application to Alice below /quick, and each page with a script's tag
#: through an application of its own, below the page's name.
SERVE = """
import sys
from wsgiref.simple_server import make_server
from wsgiref.util import shift_path_info
from myapp.security import SecurityPolicy
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from tree import Root

ran = {"metrics": {"miles_run": 26, "strides": 40000}, "owner": "alice"}
job_state = testing.put_job(store, RunMarathon, "success", **ran)
running = testing.put_job(store, RunMarathon, owner="alice")


def make(name):
    def show(request):
        shown = running if name == "cancellable" else job_state
        return {"job_state": request.job_states[shown.uuid]}

    options = {"root_factory": Root, "security_policy": SecurityPolicy()}
    with Configurator(**options) as config:
        config.include("pyramid_jinja2")
        if name == "cdn":
            config.add_static_view(sys.argv[1], "pyramid_jobstate:static")
        if name == "cancellable":
            config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
            config.set_default_csrf_options(require_csrf=True)
        config.include("pyramid_jobstate", route_prefix="team")
        if name == "nonce":
            for module in "pyramid_jobstate.pages", "myapp.csp", "myapp.looks":
                config.include(module)
        config.add_route("page", "/")
        config.add_view(show, route_name="page", renderer=f"myapp:{name}.jinja2")
        return config.make_wsgi_app()


tags = "cdn mounted manifest module element cancellable nonce"
apps = {name: make(name) for name in tags.split()}
apps["quick"] = visit().app


def dispatch(environ, start_response):
    app = apps.get(shift_path_info(environ))
    if app is None:
        start_response("204 No Content", [])
        return []
    return app({**environ, **alice}, start_response)


server = make_server("127.0.0.1", 0, dispatch)
print(f"http://127.0.0.1:{server.server_port}", job_state.uuid, flush=True)
server.serve_forever()
"""


class MyApp:
    """The application of the README's reader, made of the README's files, with a broker
    of its own and a security policy. What the quick start adds is left out.
    """

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        path = os.pathsep.join([str(folder), str(ROOT)])
        self.environ = {"PYTHONPATH": path, "REDIS_URL": redis_url}
        (tree,) = [text for text in snippets("python") if "class Root(dict)" in text]
        files = {"myapp/security.py": SECURITY, "tree.py": tree}
        for text in snippets(r"python|html\+jinja"):
            if match := re.match(r"(?:#|<!--) (myapp/[\w/.]+)(?!,)\b", text):
                files[match[1]] = text
        lines = textwrap.indent(files["myapp/__init__.py"], " " * 8)
        files["myapp/__init__.py"] = MAIN.format(lines=lines)
        # The README's runner takes a second a mile, for people to watch. Where it keeps
        # reports, a test may not write.
        for name, old, new in (
            ("myapp/jobs.py", "time.sleep(1)", "time.sleep(0.02)"),
            ("myapp/reports.py", "/srv/myapp/reports/", f"{folder}/reports/"),
        ):
            assert old in files[name]
            files[name] = files[name].replace(old, new)
        for name, text in files.items():
            self.write(name, text)
        (folder / "reports").mkdir()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def run(self, program: str) -> None:
        """Run a program to its end, after PRELUDE."""
        words = ("-c", PRELUDE + program)
        run_python(*words, folder=self.folder, environ=self.environ)

    def start(self, *command: str) -> Process:
        log = self.folder / f"{time.monotonic_ns()}.log"
        return Process([sys.executable, *command], log, self.folder, self.environ)

    @contextlib.contextmanager
    def serving(self, cdn: str = "https://cdn.example") -> Iterator[list[str]]:
        """Serve the application, and yield its address and the id of a job."""
        with self.start("-c", PRELUDE + SERVE, f"{cdn}/static") as process:
            process.wait_for_line(r"http.*\n")
            yield process.lines("http")[0].split()


@pytest.fixture
def myapp(tmp_path: Path, redis_url: str) -> MyApp:
    return MyApp(tmp_path, redis_url)


@pytest.fixture
def worker(myapp: MyApp) -> Iterator[None]:
    """The README's worker, with one process."""
    (shown,) = re.findall(r"^  (dramatiq .+)$", DOCUMENTS, re.MULTILINE)
    with myapp.start("-m", *shown.split(), "-p", "1", "-t", "2"):
        yield


def test_documents_are_valid():
    """The documents render without a warning, as PyPI would render them."""
    levels = {"halt_level": 2, "report_level": 2, "input_encoding": "unicode"}
    for names in ("README", "CHANGES"), ("CONTRIBUTING",), ("RELEASING", "SECURITY"):
        text = "\n\n".join((ROOT / f"{name}.rst").read_text("utf-8") for name in names)
        text = re.sub(r"code-block:: html\+jinja", "code-block:: html", text)
        docutils.core.publish_doctree(text, settings_overrides=levels)


def test_map_of_the_package_has_each_module():
    """The map in "Architecture" has every folder with modules, and names these."""
    blocks = snippets("text", page("explanation/architecture"))
    (text,) = [block for block in blocks if "(top)" in block]
    found = re.findall(r"^ *(\S+) +((?:.|\n {10})+)", text, re.MULTILINE)
    entries: dict[str, str] = dict(found)
    folders = {"(top)": "", "push/": "web/push", "pages/": "web/pages"}
    told = {PACKAGE / folders.get(name, name): text for name, text in entries.items()}
    modules = [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    assert {path.parent for path in modules} == told.keys()
    for path in modules:
        assert re.search(rf"\b{path.stem}\b", told[path.parent]), path


def test_tests_take_every_snippet():
    """No page has code that the tests cannot see: indented, or in another form."""
    for name, text in PAGES.items():
        shown = re.findall(r"^ *\.\. (?:code-block|code|sourcecode)::", text, re.M)
        assert len(shown) == len(snippets(r"\S+", text)), name


def test_links_of_the_readme_lead_to_pages():
    """The README's links into the documentation, and to files, lead somewhere."""
    links = re.findall(r"<(?!https?:)([^<>]+\.rst)>`_", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).is_file(), link


def test_versions_of_the_readme_are_those_of_setup():
    """The oldest versions that the quick start names are the oldest that install."""
    said = r"Python ([\d.]+) or later, Pyramid (\d+) and\s+Dramatiq (\d+)\."
    ((python, pyramid, dramatiq),) = re.findall(said, README)
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert f'python_requires=">={python}"' in setup
    assert f'"pyramid>={pyramid}.0"' in setup
    assert f'"dramatiq>={dramatiq}.0"' in setup


@pytest.mark.promise("documentation-is-true")
def test_every_snippet_runs_or_parses(myapp):
    """Every Python snippet parses. Those that belong to no file run unchanged."""
    others = []
    for text in snippets("python"):
        is_decorator = text.splitlines()[-1].startswith("@")
        ast.parse(f"{text}def view(request): ..." if is_decorator else text)
        if not re.match(r"(?:#|<!--) [\w/]+\.\w+", text):
            others.append(text)
    assert len(others) >= 5
    myapp.run(f"for text in {others!r}:\n    exec(text, dict(globals()))")


def test_actor_of_the_readme_uses_its_request(myapp):
    """The actor with a request sends other jobs and knows a URL of the application."""
    myapp.run("""
from myapp.training import train

registry = including("pyramid_jobstate.testing").app.registry
with prepare(registry=registry) as env:
    env["request"].job_states.send_immediately(train, 3)
lead, *others = testing.run_jobs(registry)
assert lead.progress.fraction == 1 and len(others) == 3
assert lead.message == "See http://localhost/run", lead.message
""")


def test_actors_of_the_documents_are_tracked(myapp):
    """By the parameter, whose annotation names the class of the job."""
    myapp.write("lines.txt", "one\n\nthree\n")
    myapp.run("""
from myapp.counting import count_lines, run_slowly

job_state = testing.detached()
count_lines("lines.txt", job_state=job_state)
assert job_state.progress.done == 3 and job_state.progress.unit == "lines"
assert testing.values(job_state, "empty") == [1]
kinds = [store.load(x.send(1).message_id).kind for x in (count_lines, run_slowly)]
assert kinds == ["JobState", "RunMarathon"], kinds
""")


def test_view_of_the_readme_sends(myapp):
    """The view that shows all ways of sending uses each of them."""
    (view,) = [text for text in snippets("python") if "send_immediately" in text]
    includeme = """

def includeme(config):
    config.add_route("all", "/all")
    config.add_view(view, route_name="all", renderer="json")
"""
    myapp.write("ways.py", f"from myapp.jobs import run_marathon\n{view}{includeme}")
    myapp.run("""
app = including("ways")
app.get("/all")
items = app.get("/job_state").json["items"]
assert len(items) == 5, items
assert {item["job"]["status"] for item in items} == {"queued"}
""")


def test_metrics_of_the_documents(myapp):
    """The view answers in the format of Prometheus."""
    myapp.run("""
testing.put_job(store, RunMarathon, "queued")
answer = including("myapp.metrics").get("/metrics")
assert answer.headers["Content-Type"].startswith("text/plain; version=")
line = 'jobstate_jobs{kind="class:RunMarathon",status="queued"} 1.0'
assert line in answer.text.splitlines(), answer.text
""")


def test_second_broker_of_the_documents_works(myapp, store):
    """Jobs of both brokers are in one store. Dramatiq's command, given the documents'
    module, serves the second one, whose actor has a request.
    """
    (module,) = [text for text in snippets("python") if "# labels_worker.py" in text]
    myapp.write("labels_worker.py", module)
    myapp.write("production.ini", "[app:main]\nuse = call:myapp:main\n")
    myapp.run("""
from myapp.labels import labels, print_label

app = main({})
with prepare(registry=app.registry) as env, env["request"].tm:
    states = env["request"].job_states
    states.send(run_marathon, 26)
    states.send(print_label, "A1")
    states.send_message(print_label.message("A2"), broker=labels)
""")
    (command,) = re.findall("``dramatiq (labels_worker.+)``", page("howto/own-broker"))
    with myapp.start("-m", "dramatiq", command, "-p", "1", "-t", "1"):
        wait_for(lambda: store.counts().success == 2, 20)
    ran = {job.status: job.message for job in store.list().items}
    assert ran == {"queued": None, "success": "A1: http://localhost/run"}


def test_retries_of_the_documents(myapp):
    """Actors are tried again as their options say, and others as often as the
    middleware says then. A try keeps its metrics until the next one.
    """
    (change,) = [text for text in snippets("python") if "import Retries" in text]
    myapp.run(f"""
app = visit()
from myapp.feeds import poll_feed, read_feed

{change}
@dramatiq.actor(job_state=True, min_backoff=1, max_backoff=1)
def other():
    raise ValueError


sent = [other.send(), poll_feed.send("x"), read_feed.send("x"), read_feed.send("<x>")]
expected = [("error", 4), ("error", 1), ("error", 1), ("retrying", 1)]


def ended():
    jobs = [store.load(message.message_id) for message in sent]
    return jobs if [(job.status, job.attempt) for job in jobs] == expected else None


jobs = work(ended)
assert 50 < (jobs[3].due_at - jobs[3].updated_at).total_seconds() < 121
assert jobs[3].progress_metrics == {{"read": 3}}
""")


def test_owner_of_the_documents_is_a_user_or_a_visitor(myapp):
    """With the documents' function users and visitors own their jobs, and a visitor is
    not a user of the same name.
    """
    myapp.write("sessions.py", SESSIONS)
    myapp.run("""
owned = {"jobstate.owner": "myapp.owners.owner", "pyramid.includes": "sessions"}
app = visit(**owned).app
user, visitor, other = TestApp(app, extra_environ=alice), TestApp(app), TestApp(app)
for client, customer in (visitor, "alice"), (other, "bob"):
    client.get("/job_state?limit=1", {"customer": customer}, expect_errors=True)
for client, owner in (user, "alice"), (visitor, "customer:alice"):
    url = client.get("/run").html.find("job-state")["src"]
    assert store.load(url.split("/")[-2]).owner == owner
    assert client.get(url).json["job"]["cancellable"] is True
    for each in user, visitor, other:
        each.get(url, status=200 if each is client else 403)
""")


def test_permits_of_the_readme_makes_the_acls_count(myapp):
    """With the four-line function, ACLs let the owner in beside a policy of roles."""
    myapp.run("""
from myapp import security

security.SecurityPolicy.permits = lambda self, request, context, permission: False
app = visit(**{"jobstate.permits": "myapp.rights.permits"})
url = app.get("/run").html.find("job-state")["src"]
assert app.get(url).json["job"]["cancellable"] is True
app.get(url, extra_environ=bob, status=403)
app.get("/job_state?all=1", status=403)
""")


def test_operators_and_layout_of_the_readme(myapp):
    """With the README's root and layout, admins operate, and owners see their jobs."""
    myapp.write("rooted.py", ROOTED)
    myapp.run("""
job = testing.put_job(store, RunMarathon, "error", owner="alice").uuid
layout = {"jobstate.pages_layout": "myapp:templates/jobs.jinja2"}
app = visit(**layout, **{"pyramid.includes": "rooted pyramid_jobstate.pages"})
html = {"Accept": "text/html"}
for user, path, found, deleted in (
    ("alice", "/job_state", 403, 403),
    ("group:admins", "/job_state/?all=1", 200, 204),
):
    app.extra_environ = {"REMOTE_USER": user}
    page = app.get(path, headers=html).html
    assert page.title.text.endswith(" · My shop")
    assert page.find("tr", {"data-uuid": job}) and page.nav.a.text == "My shop"
    page = app.get(f"/job_state/{job}", headers=html).html
    assert page.title.text == "Run marathon · My shop"
    acts = [button["data-act"] for button in page.select("[data-act]")]
    assert acts == ([] if user == "alice" else ["rerun", "delete"])
    app.get("/job_state/counts", status=found)
    app.get(f"/job_state/{job}/inspect", status=found)
    header = {"X-Requested-With": "x"}
    app.delete(f"/job_state/{job}", headers=header, status=deleted)

testing.release_broker()
app = including("rooted pyramid_jobstate.pages myapp.marathon")
job = testing.put_job(store, RunMarathon, owner="alice", params={"miles": 26}).uuid
for path in f"/job_state/{job}", f"/job_state/{job}/":
    assert app.get(path, headers=html).text == "<h1>26 miles: working</h1>"
    assert app.get(path).json["job"]["status"] == "working"
    app.get(path, headers=html, extra_environ=bob, status=403)
""")


def test_result_of_the_readme_is_guarded(myapp):
    """Only the owner can download a report by its result, once it has been made."""
    myapp.run("""
from myapp.reports import ExportReport
from pyramid.config import Configurator

app = including("myapp.reports")
made = {"metrics": {"file": "made.csv"}, "owner": "alice"}
done = testing.put_job(store, ExportReport, "success", **made).uuid
running = testing.put_job(store, ExportReport, **made).uuid
other = testing.put_job(store, status="success", owner="alice").uuid
with open("reports/made.csv", "w") as file:
    file.write("1,2")
url = app.get(f"/job_state/{done}").json["job"]["result"]["url"]
assert app.get(url).text == "1,2"
app.get(url, extra_environ=bob, status=403)
for uuid in running, other, "0" * 32, "x":
    app.get(f"/reports/{uuid}", status=404)
config = Configurator(settings={"jobstate.redis_url": redis_url})
config.include("pyramid_jobstate")
config.include("myapp.reports")
TestApp(config.make_wsgi_app()).get(f"/reports/{done}", status=403)
""")


def test_batch_of_the_readme_runs(myapp):
    """The view sends a batch, one of whose members sends two more."""
    myapp.run("""
app = visit()
from myapp import imports

with prepare(registry=app.app.registry) as env, env["request"].tm:
    uuid = imports.start_import(env["request"])["job_state"].uuid
work(lambda: store.load(uuid).is_finished)
batch = store.load(uuid)
assert (batch.kind, batch.title) == ("ImportAll", "Import of 3 files")
assert batch.is_success and batch.counts.success == batch.size == 5
assert [member.message for member in store.members(uuid).items] == [
    "Reading a.csv", "Reading large.csv", None, "Reading b.csv", "Reading c.csv"
]
""")


def test_script_of_the_readme_sends(myapp, store):
    """The script sends a marathon of Alice's."""
    (script,) = [text for text in snippets("python") if "prepare(" in text]
    myapp.run(script)
    (job_state,) = store.list("alice").items
    assert (job_state.actor, job_state.status) == ("run_marathon", "queued")


def test_scripts_of_the_documents_wait(myapp, worker):
    """They get the ends of jobs that the README's worker runs, in threads, in asyncio
    and after a commit.
    """
    myapp.run("""
import asyncio
from myapp import awaiting, committed, waiting

uuid, other = [run_marathon.send(2).message_id for _ in range(2)]
asyncio.run(awaiting.follow(store, uuid))
waiting.follow(store, other)
for job_state, jobs in (
    waiting.wait(store, uuid, other),
    asyncio.run(awaiting.wait(store, uuid, other)),
):
    assert [job_state.uuid, *jobs] == [uuid, jobs[0], jobs[1]]
    assert [(job.uuid, job.status) for job in jobs] == [
        (uuid, "success"), (other, "success")
    ]
registry = including("pyramid_tm").app.registry
with prepare(registry=registry) as env:
    assert committed.run_and_wait(env["request"]).is_success
""")


def test_hooks_of_the_documents_tell(myapp):
    """A worker mails the end of a job and of a batch, writes one row, and posts a
    signed event. The documents' test of a hook passes.
    """
    myapp.write("database.py", DATABASE)
    myapp.write("myapp/models/__init__.py", "")
    myapp.write(
        "myapp/models/meta.py",
        "from sqlalchemy.orm import declarative_base\n\nBase = declarative_base()\n",
    )
    (test,) = [text for text in snippets("python") if "# tests/test_orders" in text]
    myapp.write("test_orders.py", test)
    for name in "a.csv", "b.csv":
        myapp.write(name, "1,2\n3,4\n")
    myapp.run("""
import hashlib
import hmac
import http.server
import json
import threading
from dramatiq.middleware import Retries
from pyramid_mailer import get_mailer

events = []


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        expected = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
        assert self.headers["X-Signature"] == expected
        events.append(json.loads(body))
        self.send_response(204)
        self.end_headers()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["WEBHOOK_URL"] = f"http://127.0.0.1:{server.server_port}"
os.environ["WEBHOOK_SECRET"] = "secret"
app = including("pyramid_tm pyramid_mailer.testing database").app
from myapp import inbox, nightly, orders, webhook

inbox.Base.metadata.create_all(app.registry["engine"])
broker, outbox = dramatiq.get_broker(), get_mailer(app.registry).outbox
(retries,) = [m for m in broker.middleware if isinstance(m, Retries)]
retries.max_retries = 0
with prepare(registry=app.registry) as env, env["request"].tm:
    env["request"].environ["REMOTE_USER"] = "alice@example.com"
    states = env["request"].job_states
    imported = states.send(orders.import_orders, "a.csv")
    printed = states.send(inbox.print_labels)
    shipped = states.send(webhook.ship_parcel, 7)
    batch = nightly.start_night(env["request"], ["b.csv", "none.csv"])["job_state"]


def notes():
    with app.registry["engine"].connect() as connection:
        return [(*row,) for row in connection.execute(inbox.Note.__table__.select())]


work(lambda: len(outbox) == 4 and notes() and events)
assert {tuple(mail.recipients) for mail in outbox} == {("alice@example.com",)}
assert sorted(mail.subject for mail in outbox) == [
    "1 of 2 imports have failed",
    "2 orders are imported",
    "2 orders are imported",
    "Your orders could not be imported",
]
for job in imported, batch:
    assert f"http://localhost/job_state/{job.uuid}/" in [mail.body for mail in outbox]
printed, shipped = store.load(printed.uuid), store.load(shipped.uuid)
testing.run_hook(app.registry, printed, {})
note = (printed.uuid, printed.finished_at.isoformat(), "Your labels are printed.")
assert notes() == [note]
ended = {"status": "success", "at": str(shipped.finished_at)}
assert events == [{"job": shipped.uuid, **ended}]
members = ["success", "error", "error"]
batch = testing.put_batch(store, nightly.ImportNight, members, owner="bob@example.com")
testing.run_hook(app.registry, batch, {})
assert outbox.pop().subject == "2 of 3 imports have failed"
outbox.clear()
import test_orders
from webtest import TestApp

test_orders.test_mail_of_a_failure(app, TestApp(app), store)
""")


def test_json_of_the_readme_has_the_real_names(app, store):
    """The README's example of a state has exactly the keys of a real one."""
    more: Any = {"metrics": {"miles_run": 12}, "progress": Progress(12, 26, "miles")}
    job_state = testing.put_job(store, RunMarathon, owner="alice", **more)
    real = get(app, f"/job_state/{job_state.uuid}", "alice").json
    (shown,) = map(json.loads, snippets("json"))
    assert shown.keys() == real.keys()
    assert shown["job"].keys() == real["job"].keys()
    assert shown["job"]["progress"].keys() == real["job"]["progress"].keys()


@pytest.mark.promise("documentation-is-true")
def test_settings_of_the_readme_are_the_real_ones(redis_url):
    """The README lists exactly the settings that exist, with their defaults."""
    blocks = page("reference/settings").split("\n\n")
    table = next(block for block in blocks if block.startswith("==="))
    rows = re.findall(r"^``(jobstate\.\w+)``(.*(?:\n .*)*)", table, re.MULTILINE)
    with pytest.raises(ConfigurationError) as info:
        make_app(make_config(redis_url, settings={"jobstate.nothing": "1"}))
    known = re.search(r"Known settings: (.+)\.", str(info.value))
    assert known
    assert sorted(name for name, _ in rows) == known[1].split(", ")

    plain = made_config(redis_url)
    found = [(name, re.search(r"\(``([^`]+)``\)$", text)) for name, text in rows]
    defaults = {name: default[1] for name, default in found if default}
    assert defaults["jobstate.namespace"] == "jobstate"
    spelled = made_config(redis_url, settings=defaults)
    stores = [make_request(config).job_states.store for config in (plain, spelled)]
    for name in ("namespace", "expire_in", "active_expire_in", "stalled_after"):
        one, other = (getattr(store, name) for store in stores)
        assert one == other, name


def test_names_of_the_readme_exist():
    """Every method and attribute that the README names is public."""
    members = set(dir(pyramid_jobstate.JobState))
    for module in ("", ".testing", ".resources", ".fixtures"):
        members.update(dir(importlib.import_module(f"pyramid_jobstate{module}")))
    members.update(dir(pyramid_jobstate.resources.JobStates))
    members.update(["uuid"])
    section = page("howto/report") + page("howto/result")
    named = set(re.findall(r"``(?:job_state\.)?(\w+)(?:\([^`]*)?``", section))
    named -= {"job_state", "True", "async"}
    assert not {name for name in named if name not in members}


def test_script_tags_of_the_readme_find_jobs_and_styles(page, console_errors, myapp):
    """Each way to include the script finds the job, wherever it is mounted."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    follow = "(jobUuid) => JobState.follow({ jobUuid }).done"
    append = "document.body.append(new JobState.JobStateElement())"
    with (
        contextlib.closing(PollServer()) as cdn,
        myapp.serving(cdn.url) as (address, job_uuid),
    ):
        for name, base in (
            ("cdn", "/cdn/team/job_state"),
            ("mounted", "/mounted/jobs"),
            ("manifest", "/manifest/team/job_state"),
        ):
            page.goto(f"{address}/{name}/")
            assert page.evaluate(follow, job_uuid)["outcome"] == "success"
            assert f"{address}{base}/{job_uuid}" in asked
        assert f"{cdn.url}/static/job-state.js" in asked
        page.evaluate(append)
        sheet = f"{address}/manifest/team/job_state/static/job-state.css"
        wait_for(lambda: page.evaluate("1") and sheet in asked)
        page.goto(f"{address}/module/")
        wait_for(lambda: page.text_content(".miles") == "26")
    assert console_errors == []


def test_script_of_the_readme_runs(page, console_errors, myapp, worker):
    """The page of the quick start and the script follow a marathon to its end."""
    (script,) = [text for text in snippets("js") if ".miles" in text]
    with myapp.serving() as (address, _):
        page.goto(f"{address}/quick/run")
        page.evaluate(
            """() => {
                const url = document.querySelector("job-state").getAttribute("src");
                const miles = document.createElement("p");
                miles.className = "miles";
                miles.dataset.jobUuid = url.split("/").at(-2);
                document.body.append(miles);
            }"""
        )
        page.add_script_tag(content=script)
        page.wait_for_selector(".miles.done", timeout=20_000)
        assert page.text_content(".miles") == "26"
        state = "document.querySelector('job-state').state"
        wait_for(lambda: page.evaluate(state) == "success", 20)
    assert console_errors == []


@pytest.mark.promise("content-security-policy-holds")
def test_elements_of_the_documents_show_a_job(page, console_errors, myapp):
    """The templates show metrics, cancel with a token, and set colours and parts. Under
    a policy with a nonce, an element and a page for people are styled.
    """
    with myapp.serving() as (address, job_uuid):
        page.goto(f"{address}/element/")
        expect(page.locator("job-state b")).to_have_text("26")
        expect(page.locator("[data-job=run]")).to_have_text("40,000")
        page.goto(f"{address}/cancellable/")
        page.locator("[part=cancel]").click()
        expect(page.locator("job-state[state=cancelling]")).to_be_attached()
        (style,) = re.findall("<style>(.*?)</style>", DOCUMENTS, re.DOTALL)
        page.add_style_tag(content=style)
        title, bar = (page.locator(f"[part={name}]") for name in ("title", "bar"))
        expect(title).to_have_css("text-transform", "uppercase")
        expect(bar).to_have_css("height", "12px")
        expect(bar).to_have_css("border-radius", "0px")
        for path in "/", f"/team/job_state/{job_uuid}":
            response = page.goto(f"{address}/nonce{path}")
            assert response
            assert "script-src 'nonce-" in response.headers["content-security-policy"]
            expect(page.locator("job-state[state=success]")).to_be_attached()
            bar = page.locator("[part=bar]")
            expect(bar).to_have_css("height", re.compile("^[68]px"))
        expect(page.get_by_role("button", name="Copy")).to_be_visible()
    assert console_errors == []


@pytest.mark.promise("content-security-policy-holds")
def test_sheet_of_an_element_needs_no_style_source(page, console_errors):
    """The script hands its style sheet to elements past the policy for styles, unless
    it cannot fetch it. Then their link needs the origin, as it has no nonce.
    """
    tag = "<script nonce=n src=/job-state.js></script>"
    with contextlib.closing(PollServer()) as server:
        server.answer("job", success())
        server.pages["/page"] = f"<!doctype html>{tag}<job-state src=/job_state/job>"
        for sources, height in (
            ("connect-src 'self'; style-src 'none'", "6px"),
            ("connect-src 'self'; style-src 'nonce-n'", "6px"),
            ("style-src 'none'", "0px"),
            ("style-src 'nonce-n'", "0px"),
            ("style-src 'self'", "6px"),
            ("style-src 'nonce-n' 'self'", "6px"),
        ):
            server.policy = f"default-src 'none'; script-src 'nonce-n'; {sources}"
            page.goto(f"{server.url}/page")
            expect(page.locator("job-state[state]")).to_be_attached()
            page.wait_for_load_state("networkidle")
            expect(page.locator("[part=bar]")).to_have_css("height", height)
            assert bool(console_errors) == ("connect-src" not in sources)
            console_errors.clear()


def test_scripts_of_the_documents_hear_and_cancel(page, console_errors):
    """A listener goes on to the result, a handle cancels, and labels are German. The
    button that asks whether to notify goes when the viewer agrees.
    """
    to_result, to_cancel, to_german, to_ask = (
        next(text for text in snippets("js") if word in text)
        for word in ("event.detail", "handle.done", "setLabels", "askToNotify")
    )
    made = json.loads(success().body)
    done = json.loads(error().body)
    with contextlib.closing(PollServer()) as server:
        made["job"]["result"] = {"url": f"{server.url}/empty?made"}
        done["job"]["status"] = "cancelled"
        server.answer("made", Answer(body=json.dumps(made)))
        server.answer("job", working(), Answer(body=json.dumps(done)))
        server.answer("job/cancel", Answer(202), method="POST")
        server.answer("german", working())
        element = "<job-state src=/job_state/%s></job-state>"
        page.goto(f"{server.url}/empty")
        page.add_script_tag(url="/job-state.js")
        page.add_script_tag(content=to_german)
        page.evaluate("document.documentElement.lang = 'de-AT'")
        page.evaluate("html => document.body.innerHTML = html", element % "german")
        expect(page.locator("[part=status]")).to_have_text("Läuft")
        page.evaluate("document.body.innerHTML = '<button>Cancel</button>'")
        page.add_script_tag(content=to_cancel)
        page.evaluate(
            """() => {
                const button = document.querySelector("button");
                showUntilCancelled("/job_state/job", button, "token");
                button.click();
            }"""
        )
        expect(page.locator("button")).to_have_text("cancelled")
        (asked,) = server.seen("job/cancel", "POST")
        assert asked.headers["x-csrf-token"] == "token"
        page.evaluate(
            """() => {
                document.body.innerHTML = "<button class=tell-me>Tell me</button>";
                [window.answer, window.asked] = ["denied", 0];
                Notification.requestPermission = async () => (asked += 1, answer);
            }"""
        )
        page.add_script_tag(content=to_ask)
        page.locator(".tell-me").click()
        wait_for(lambda: page.evaluate("asked") == 1)
        expect(page.locator(".tell-me")).to_be_visible()
        page.evaluate("answer = 'granted'")
        page.locator(".tell-me").click()
        expect(page.locator(".tell-me")).to_be_hidden()
        page.add_script_tag(content=to_result)
        page.evaluate("html => document.body.innerHTML = html", element % "made")
        page.wait_for_url("**/empty?made")
    assert console_errors == []


def test_catalog_of_the_documents_translates(myapp):
    """The commands make a catalog for the pages and for what we say of an end. Titles
    have one of the application's.
    """
    blocks = re.findall(r"::\n\n((?:  .+\n)+)", page("howto/translate"))
    make, compile_ = map(textwrap.dedent, blocks)
    (entries,) = [text for text in snippets("text") if "msgid" in text]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(commands: str) -> None:
        environ = {**os.environ, **myapp.environ, "PATH": places}
        words = ["sh", "-e", "-c", commands]
        subprocess.run(words, cwd=myapp.folder, env=environ, check=True)

    run(make)
    po = myapp.folder / "myapp/locale/de/LC_MESSAGES/pyramid_jobstate.po"
    text = po.read_text("utf-8")
    for entry in entries.split("\n\n"):
        ids = entry[: entry.index("msgstr")]
        assert ids in text
        text = re.sub(rf"{re.escape(ids)}(?:msgstr.*\n)+", f"{entry}\n", text)
    po.write_text(text, "utf-8")
    run(compile_)
    own = {"Race over ${miles} miles": "${miles} Meilen"}
    write_catalog(myapp.folder / "myapp/locale", "myapp", "de", own)
    myapp.run("""
from pyramid_jobstate import JobError
from myapp.races import Race

app = including("pyramid_jobstate.pages myapp.languages")

more = {"owner": "alice", "params": {"miles": 26}}
for status, error in ("working", None), ("error", JobError("ValueError", "hush")):
    job = testing.put_job(store, Race, status, error=error, **more).uuid
html, german = {"Accept": "text/html"}, {"Accept-Language": "fr, de-AT;q=0.5"}
page = app.get("/job_state", headers={**html, **german}).html
assert page.html["lang"] == page.find(class_="jobstate")["lang"] == "de"
assert page.tbody.a.text == "26 Meilen", page.tbody
assert "Läuft" in page.tbody.text, page.tbody
assert app.get("/job_state", headers=html).html.html["lang"] == "en"
state = app.get(f"/job_state/{job}", headers=german).json["job"]
assert state["title"] == "26 Meilen"
assert state["error"]["message"] == "The runner fell."
""")
