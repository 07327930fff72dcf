"""JobStates: the container of jobs, for traversal and as `request.job_states`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from pyramid.interfaces import IRootFactory
from pyramid.traversal import DefaultRootFactory, resource_path_tuple

from ..errors import StoreUnavailable
from ..job import JobState, is_uuid, set_container, set_store
from ..store import Page
from .batches import BatchSender
from .interfaces import IBaseUrl
from .joburls import URL_OF, is_below, url_of
from .unavailable import UnreadRecord

if TYPE_CHECKING:
    from pyramid.request import Request

    from ..job import Record

#: The names of the views of a job.
JOB_VIEWS = ("", "cancel", "rerun", "inspect")


class JobStates(BatchSender):
    """The container of jobs in the resource tree.

    ``request.job_states`` is one. An application can mount others in its own tree::

        class Root:
            def __getitem__(self, name):
                if name == "jobs":
                    return JobStates(self.request, parent=self, name="jobs")
                raise KeyError(name)

    Parameters:
      request: The request that it serves.
      parent: The resource in which it is mounted. Without one it is found at the path
        of the setting ``jobstate.path``, below the application's root.
      name: Its name in the parent.
    """

    def __init__(
        self, request: Request, parent: object = None, name: str | None = None
    ) -> None:
        super().__init__(request)
        self.is_mounted = parent is not None
        self.__name__ = name
        self._parent = parent
        #: The URL of the container, and the variables of which it was made.
        self._url = ""
        self._place: tuple[object, ...] = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A JobStates serves one request and cannot be stored. Create one in the "
            "__getitem__ of the resource that holds it."
        )

    @property
    def __parent__(self) -> Any:
        # The root is made only if an ACL check needs it: the job's own ACL comes first.
        if self._parent is None:
            factory = self.request.registry.queryUtility(
                IRootFactory, default=DefaultRootFactory
            )
            try:
                root = factory(self.request)
            except AttributeError as e:
                # lineage() would mistake it for a missing __parent__.
                raise RuntimeError(f"The root factory failed: {e}") from e
            if isinstance(root, JobStates) and not root.is_mounted:
                # Its parent would be another such root, endlessly.
                root = DefaultRootFactory(self.request)
            self._parent = root
        return self._parent

    def __getitem__(self, uuid: str) -> JobState:
        """Return a job.

        Raises:
          KeyError: The job is unknown.
          StoreUnavailable: The store does not answer.
        """
        try:
            job_state = self.find(uuid)
        except StoreUnavailable:
            if self._is_traversed_to(uuid):
                return self.unread(uuid)
            raise
        except KeyError as e:
            # Traversal would mistake it for an unknown job.
            raise RuntimeError(f"The class of the job {uuid} failed: {e!r}") from e
        if job_state is None:
            raise KeyError(uuid)
        return job_state

    def _is_traversed_to(self, uuid: str) -> bool:
        """Return whether Pyramid is traversing the application's tree towards one of
        our views, with nothing of the application's below this container.
        """
        attributes = self.request.__dict__
        if (
            type(self) is not JobStates
            or not self.is_mounted
            or "root" not in attributes
            or "context" in attributes
            or attributes.get("matched_route") is not None
        ):
            return False
        path = f"{'/'.join(resource_path_tuple(self))}/{uuid}"
        asked: str = self.request.path_info
        return asked == path or asked in [f"{path}/{name}" for name in JOB_VIEWS]

    def unread(self, uuid: str) -> JobState:
        """Return a job that the store could not read: see :class:`UnreadRecord`."""
        # It takes the place of a Record, and raises when read.
        job_state = JobState(cast("Record", UnreadRecord(uuid, self)))
        set_store(job_state, self.store.records)
        set_container(job_state, self)
        return job_state

    def find(self, uuid: str) -> JobState | None:
        """Return a job, or None if it is unknown.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        if not is_uuid(uuid):
            return None
        return self._adopt(self.ask(lambda store: store.load(uuid)))

    def find_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs, with None in the place of each unknown one.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        known = [uuid for uuid in uuids if is_uuid(uuid)]
        # An empty question would always be answered, and so seem to end an outage.
        jobs = self.ask(lambda store: store.load_many(known)) if known else []
        found = dict(zip(known, jobs, strict=True))
        return [self._adopt(found.get(uuid)) for uuid in uuids]

    def url_of(self, job_state: JobState) -> str:
        """Return the URL of a job in its state: that of ``request.resource_url()``, but
        with jobstate.base_url at its beginning if that is set.
        """
        if not is_below(job_state, self):
            base_url = self.request.registry.queryUtility(IBaseUrl)
            options = {} if base_url is None else {"app_url": base_url}
            url: str = self.request.resource_url(job_state, **options)
            return url
        get = self.request.environ.get
        # The jobs of a list share what the URL depends on.
        place = tuple(map(get, URL_OF))
        if place != self._place:
            self._place, self._url = place, url_of(self)
        return f"{self._url}{job_state.uuid}/"

    def list(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
        *,
        members: bool = False,
    ) -> Page:
        """Return a page of jobs, without checking permissions: see
        :meth:`JobStore.list`.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid, or a class and an actor are
            named `kind`.
          StoreUnavailable: The store does not answer.
        """
        page = self.ask(
            lambda store: store.list(
                owner, kind, status, params, limit, cursor, members=members
            )
        )
        for job_state in page.items:
            self._adopt(job_state)
        return page


def _job_states(request: Request) -> JobStates:
    # A property rather than `reify`, so that check_request_method() recognises it.
    job_states: JobStates | None = request.__dict__.get("job_states")
    if job_states is None:
        job_states = request.__dict__["job_states"] = JobStates(request)
    return job_states


def _set_job_states(request: Request, value: Any) -> None:
    request.__dict__["job_states"] = value


#: `request.job_states`: one container per request. An application's tests may set it.
JOB_STATES = property(_job_states, _set_job_states)
