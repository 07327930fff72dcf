"""What the tests of pages share: applications with pages, and visits to them."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bs4 import BeautifulSoup, Tag
from pyramid.config import Configurator
from webtest import TestApp

from pyramid_jobstate import Batch, JobError, JobState, JobStore, testing
from tests.jobs import RunMarathon
from tests.web.operating import OPERATOR, operated_root, uuids_of
from tests.webapp import get, make_app, make_config

MILES = {"miles": 26}

#: The header Accept of Chromium.
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)

#: Where the libraries of a worker are.
SITE = "/srv/venv/lib/python3.12/site-packages"

#: Frames of libraries, from the outside to the application.
OUTER = f'''\
Traceback (most recent call last):
  File "{SITE}/dramatiq/worker.py", line 560, in process_message
    res = actor(*message.args, **message.kwargs)
          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "{SITE}/pyramid_jobstate/worker/actors.py", line 283, in __call__
    return self._run(job, job_state, args, kwargs)
'''

#: A frame of the application's.
OWN = """\
  File "/srv/shop/shop/jobs.py", line 12, in import_file
    for row in rows:
"""

#: One of a library, which the application has called.
INNER = f'''\
  File "{SITE}/openpyxl/reader.py", line 7, in rows
    raise ValueError("wrong")
'''

#: A traceback of a job's.
TRACEBACK = f"{OUTER}{OWN}{INNER}ValueError: wrong\n"


def paged_config(redis_url: str | None, **options: Any) -> Configurator:
    """Return the configurator of an application that includes pages alone so far."""
    options = {"root_factory": operated_root, **options}
    config = make_config(redis_url, **options)
    config.include("pyramid_jobstate.pages")
    return config


def paged_app(redis_url: str | None, **options: Any) -> TestApp:
    """Return an application with operators and pages. Its jobs are at three places."""
    return make_app(paged_config(redis_url, **options))


def browse(app: TestApp, path: str, user: str | None = OPERATOR, **headers: str) -> Any:
    """Return the response to a browser, whatever its status."""
    return get(app, path, user, **{"Accept": CHROMIUM, **headers})


class Visit:
    """A page as a browser shows it, after its redirects."""

    def __init__(self, app: TestApp, path: str, user: str | None = OPERATOR) -> None:
        self.path = path
        response = browse(app, path, user)
        while response.status_code == 302:
            url = urlsplit(response.location)
            self.path = f"{url.path}?{url.query}".rstrip("?")
            response = browse(app, self.path, user)
        assert response.status_code == 200, response
        assert response.content_type == "text/html"
        self.response = response
        self.html = BeautifulSoup(response.text, "html.parser")
        page = self.one("[data-jobstate=page]")
        #: What the page's script is told.
        self.data = json.loads(str(page["data-words"]))
        self.data |= json.loads(str(page["data-page"]))

    def all(self, selector: str) -> list[Tag]:
        """Return the elements that a selector matches."""
        return list(self.html.select(selector))

    def one(self, selector: str) -> Tag:
        """Return the only element that a selector matches."""
        (found,) = self.all(selector)
        return found

    def has(self, selector: str) -> bool:
        return bool(self.all(selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements, with single spaces."""
        return [" ".join(tag.get_text().split()) for tag in self.all(selector)]

    def link(self, text: str) -> str:
        """Return the URL of the only link whose text begins so."""
        links = self.all("a")
        (link,) = (tag for tag in links if tag.get_text().strip().startswith(text))
        return str(link["href"])

    @property
    def uuids(self) -> list[str]:
        """The jobs in the rows of a list."""
        return [str(tag["data-uuid"]) for tag in self.all("tr[data-uuid]")]

    @property
    def acts(self) -> list[str]:
        """What the page offers to do."""
        buttons = self.all("button[data-act]:not([hidden])")
        return [str(tag["data-act"]) for tag in buttons]


#: Visits a path as a user.
Visiting = Callable[..., Visit]


def put_batch(
    store: JobStore,
    *members: str | dict[str, Any],
    cls: type[Batch] = Batch,
    member: type[JobState] = RunMarathon,
    **options: Any,
) -> tuple[str, list[str]]:
    """Store a batch of Alice's. Return its uuid and those of its members."""
    usual = {"job_state_class": member, "actor": "run_marathon", "params": MILES}
    wrong = {"error": JobError("ValueError", "wrong")}
    each = [{"status": m} if isinstance(m, str) else m for m in members]
    each = [{**usual, **(wrong if m["status"] == "error" else {}), **m} for m in each]
    options = {"owner": "alice", "title": "Import of the files", **options}
    batch = testing.put_batch(store, cls, each, **options)
    return batch.uuid, uuids_of(store.members(batch.uuid, limit=200).items)


def shape_of(visit: Visit) -> set[tuple[str, ...]]:
    """Return the elements of a page, each with the names of its attributes."""
    return {(tag.name, *sorted(tag.attrs)) for tag in visit.html.find_all(True)}


def query_of(url: str) -> dict[str, str]:
    """Return the parameters of a URL."""
    return {k: v[0] for k, v in parse_qs(urlsplit(url).query).items()}
