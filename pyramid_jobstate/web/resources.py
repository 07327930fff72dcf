"""JobStates: the container that traversal enters, and a request's access to jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from pyramid.interfaces import IRootFactory
from pyramid.traversal import DefaultRootFactory, resource_path_tuple

from ..errors import StoreUnavailable
from ..job import JobState, is_uuid, set_container, set_store
from ..store import Page
from .sending import Sender
from .unavailable import UnreadRecord

if TYPE_CHECKING:
    from pyramid.request import Request

    from ..job import Record


class JobStates(Sender):
    """The jobs, as a container of the resource tree.

    ``request.job_states`` is one. An application may mount others in its own tree::

        class Root:
            def __getitem__(self, name):
                if name == "jobs":
                    return JobStates(self.request, parent=self, name="jobs")
                raise KeyError(name)

    Parameters:
      request: The request that it serves.
      parent: The resource that it is mounted in. Without one it stands at the path of
        the setting ``jobstate.path``, below the application's root.
      name: Its name there.
    """

    def __init__(
        self, request: Request, parent: object = None, name: str | None = None
    ) -> None:
        super().__init__(request)
        self.is_mounted = parent is not None
        self.__name__ = name
        self._parent = parent

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A JobStates serves one request and cannot be stored. Give the resource "
            "that holds it a __getitem__ that makes one."
        )

    @property
    def __parent__(self) -> Any:
        # Made only when an ACL check gets here: when the job's own has not decided.
        if self._parent is None:
            factory = self.request.registry.queryUtility(
                IRootFactory, default=DefaultRootFactory
            )
            try:
                root = factory(self.request)
            except AttributeError as e:
                # lineage() would take it for a missing __parent__.
                raise RuntimeError(f"The root factory failed: {e}") from e
            if isinstance(root, JobStates) and not root.is_mounted:
                # Its parent would be another such root, without end.
                root = DefaultRootFactory(self.request)
            self._parent = root
        return self._parent

    def __getitem__(self, uuid: str) -> JobState:
        """Return a job.

        Raises:
          KeyError: There is no job of this uuid.
          StoreUnavailable: The store does not answer.
        """
        try:
            job_state = self.find(uuid)
        except StoreUnavailable:
            if self._is_traversed_to(uuid):
                return self.unread(uuid)
            raise
        except KeyError as e:
            # Traversal would take it for an unknown job.
            raise RuntimeError(f"The class of the job {uuid} failed: {e!r}") from e
        if job_state is None:
            raise KeyError(uuid)
        return job_state

    def _is_traversed_to(self, uuid: str) -> bool:
        """Whether Pyramid is traversing the application's tree on the way to a view of
        ours, and will meet nothing of the application's behind this container.
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
        return self.request.path_info in (path, f"{path}/", f"{path}/cancel")

    def unread(self, uuid: str) -> JobState:
        """Return a job of which the store says nothing: see :class:`UnreadRecord`."""
        # It raises where a Record would answer.
        job_state = JobState(cast("Record", UnreadRecord(uuid, self)))
        set_store(job_state, self.store)
        set_container(job_state, self)
        return job_state

    def find(self, uuid: str) -> JobState | None:
        """Return a job, or None if there is no job of this uuid.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        if not is_uuid(uuid):
            return None
        return self._adopt(self.ask(lambda store: store.load(uuid)))

    def find_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs, None in the place of each that there is not.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        known = [uuid for uuid in uuids if is_uuid(uuid)]
        # To ask for nothing would look like an answer, and so end an outage.
        jobs = self.ask(lambda store: store.load_many(known)) if known else []
        found = dict(zip(known, jobs, strict=True))
        return [self._adopt(found.get(uuid)) for uuid in uuids]

    def list(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of jobs, whoever may see them: see :meth:`JobStore.list`.

        Raises:
          ValueError: limit, status or cursor is invalid.
          StoreUnavailable: The store does not answer.
        """
        page = self.ask(
            lambda store: store.list(owner, kind, status, params, limit, cursor)
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


#: `request.job_states`: one container a request. The application's tests may set it.
JOB_STATES = property(_job_states, _set_job_states)
