/**
 * Types of job-state.js, a classic script that defines the global `JobState` and the
 * element `<job-state>`. The element takes its styles from the script tag's `data-styles`,
 * else from job-state.css beside the script, with the script's query. A module has no
 * script tag of its own: there it is `/job_state/static/job-state.css`.
 */
declare namespace JobState {
  /**
   * Follow one job until it ends.
   *
   * Asks at once, then `pollingPeriod` after each answer, never twice at a time.
   * Sleeps while the tab is hidden, and backs off, up to 30 seconds, while the server
   * is away, overloaded or failing.
   *
   * Jobs of one base URL share their requests, of up to 100 jobs each: when one job is
   * due, those are asked for with it that would be due before it is again. So a job may
   * be asked for sooner than its period says, but never on its account alone. A server
   * that takes fewer jobs, or none but one, in a request is asked for so many. A job that
   * the answer leaves out (unknown, forbidden, or the session has ended) is then asked
   * for by its own URL, whose answer decides.
   *
   * ```js
   * JobState.startPolling({
   *   jobUuid,
   *   update: (d) => { miles.textContent = d.miles_run; },
   *   success: () => location.reload(),
   *   error: (d) => { note.textContent = d.job.error.message; },
   *   lost: (reason) => { note.textContent = reason.message; },
   * });
   * ```
   *
   * @throws TypeError for a wrong option, naming it
   */
  function startPolling<Metrics extends object = AnyMetrics>(
    options: PollingOptions<Metrics>
  ): Poller<Metrics>;

  type PollingOptions<Metrics extends object = AnyMetrics> = JobAddress & {
    /** Milliseconds from an answer to the next request: 1000, and at least 50. */
    pollingPeriod?: number;

    /**
     * The job's state has been read. May see the same data twice; sees the data of the
     * end, too, just before `success` or `error`. The first `update` after a `lost`
     * says that the server is back.
     */
    update?: ((data: JobData<Metrics>) => void) | null;

    /** The job has succeeded. Called once, and nothing after it. */
    success?: ((data: JobData<Metrics>) => void) | null;

    /**
     * The job has failed or was cancelled: `data.job.status` says which, and
     * `data.job.error` why. Called once, and nothing after it. Trouble on the way to
     * the server is not an error of the job and goes to `lost`.
     */
    error?: ((data: JobData<Metrics>) => void) | null;

    /**
     * The job is out of sight.
     *
     * With `reason.final === false` the server is away, overloaded or failing: called
     * once per outage; the poller tries again in `reason.retryIn` milliseconds, and
     * goes on with `update`. With `reason.final === true` nobody will answer any more
     * (401, 403, 404, 410, any other 4xx, a redirect, an answer that is no job's
     * state): nothing is called after it. A final loss that no `lost` callback hears is
     * written to the console as a warning.
     */
    lost?: ((reason: Reason) => void) | null;

    /** Sent with cancel(). */
    csrfToken?: string | null;

    /**
     * The header that carries the token: X-CSRF-Token, as in Pyramid. A name that browsers
     * refuse or keep for themselves (`Cookie`) is a TypeError.
     */
    csrfHeader?: string | null;

    /** Stops the poller when it is aborted, as stop() does. */
    signal?: AbortSignal | null;

    /**
     * Allow a URL of another origin, which is refused otherwise, and send it its
     * cookies. That server needs to allow it by CORS, with credentials.
     */
    crossOrigin?: boolean;
  };

  /** Which job: its uuid, below a base URL, or a URL of its own. */
  type JobAddress =
    | {
        jobUuid: string;
        /**
         * Default: the script tag's `data-base-url`, else where the script lies
         * (`…/static/job-state.js` of the page's origin, or a longer name such as
         * `job-state-3f2a91.js`), else `/job_state`.
         */
        baseUrl?: string;
        url?: null;
      }
    | {
        /**
         * What `request.resource_url(job_state)` gives; relative to the page, or to its
         * `<base>` unless that is of another origin. If its
         * last segment is a uuid, the rest is a base URL, as for `jobUuid`; a URL with a
         * query, or any other, is asked by itself.
         */
        url: string | URL;
        jobUuid?: null;
        baseUrl?: string;
      };

  interface Poller<Metrics extends object = AnyMetrics> {
    /** Stop asking, abort the request in flight, call no callback any more. */
    stop(): void;

    /**
     * Ask the server to cancel the job, and look at once how it took it. Resolves to
     * true if it will (a running job learns of it in a moment), to false if the job had
     * ended already. Works on a stopped poller, too.
     *
     * Rejects with a {@link Failure} if the server refuses or is away.
     */
    cancel(): Promise<boolean>;

    /** Resolves, always, when the poller has ended, after its last callback. */
    readonly done: Promise<Outcome<Metrics>>;
  }

  /** How a poller ended. `data` are the last ones, null if there never were any. */
  type Outcome<Metrics extends object = AnyMetrics> =
    | { outcome: "success" | "error"; data: JobData<Metrics>; reason: null }
    | { outcome: "lost"; data: JobData<Metrics> | null; reason: Reason }
    | { outcome: "stopped"; data: JobData<Metrics> | null; reason: null };

  /** Why the server gave no useful answer; `message` is an English sentence. */
  interface Failure extends Error {
    /**
     * `network`: no answer; `timeout`: none within 30 seconds; `status`: see `status`;
     * `redirect`: perhaps to a login page; `format`: not the state of a job. Only from an
     * element: `address`: its `src` is wrong or of another origin; `csrf`: a browser cannot
     * send its `csrf-header` or `csrf-token`.
     */
    code: "network" | "timeout" | "status" | "redirect" | "format" | "address" | "csrf";
    /** The HTTP status, 0 if there was none to be seen. */
    status: number;
    /** Whether asking again is useless. */
    final: boolean;
  }

  /** What `lost` is told. */
  type Reason = Failure &
    (
      | { final: true }
      | {
          final: false;
          /** Milliseconds to the next try; sooner if the tab is hidden and shown. */
          retryIn: number;
        }
    );

  /**
   * Words for the elements of the page, in any language that has none of its own: set
   * before the elements show, by name. English unless set.
   *
   * ```js
   * JobState.labels = { working: "Baking", left: "{time} to go" };
   * ```
   */
  let labels: Labels;

  /** Words for elements in one language (their `lang`, or that of the page). */
  function setLabels(language: string, labels: Labels): void;

  /**
   * The words. What stands in braces in the English ones is filled in. An element's
   * attribute `label-…` (such as `label-cancel`) goes before all of them; `label-job` is
   * its title.
   */
  type Labels = { [Name in Label]?: string };

  type Label =
    // what stands for the title of a job that has none yet
    | "job"
    // by state
    | State
    // {time}
    | "due"
    | "retry"
    | "left"
    | "took"
    // {number}
    | "attempt"
    // {done} {unit}, {total}
    | "amount"
    | "amount-of"
    // {amount}, by second and by minute
    | "rate"
    | "rate-slow"
    | "cancel"
    // {reason}
    | "cancel-failed"
    | "log"
    // reasons, by HTTP status, or by code: {status}
    | "401"
    | "403"
    | "404"
    | "410"
    | "address"
    | "csrf"
    | "format"
    | "network"
    | "redirect"
    | "status";

  /** What an element shows: the job's status, or that it cannot be seen. */
  type State = Job["status"] | "loading" | "reconnecting" | "lost";

  /**
   * `<job-state src="…">`: a job's progress, from now to its end.
   *
   * Its content shows until the first answer. Content with `data-metric` stays, below the
   * bar: the text of any such descendant becomes the metric's value, as does that of an
   * element elsewhere with `data-metric` and `data-job` (or `for`), the element's id.
   *
   * ```html
   * <job-state id="run" src="/job_state/…/" cancellable csrf-token="…">
   *   <b data-metric="miles_run">0</b> miles
   * </job-state>
   * <span data-metric="strides" data-job="run"></span>
   * ```
   *
   * Events, which bubble out of shadow roots: `job-state:update`, `job-state:success` and
   * `job-state:error` with the data as `detail`, `job-state:lost` with the reason.
   *
   * Parts for `::part()`: job, head, icon, ring, sign, title, percent, cancel, bar, fill,
   * foot, status, details, left, message, notice, log. Custom properties:
   * `--job-state-accent`, `-success`, `-warning`, `-error`, `-track`, `-muted` (colours),
   * `-bar-height`, `-radius`. Light and dark follow the page's `color-scheme`. The
   * attribute `state` is there for selectors.
   */
  class JobStateElement extends HTMLElement {
    /** Attribute `src`: what `request.resource_url(job_state)` gives. */
    src: string;
    /** Attribute `period`: milliseconds, 1000 by default. */
    period: number;
    /** Attribute `cancellable`: show a button to who may cancel the job. */
    cancellable: boolean;
    /** Attribute `log`: show the last lines of the job's log. */
    log: boolean;
    /**
     * The last data. Data that are set are shown, and told to nobody. An element out of
     * the page is drawn when it is put into it.
     */
    data: JobData | null;
    readonly state: State;
    /**
     * As {@link Poller.cancel}; false also while it was asked and not answered, or if no
     * job is followed. The attribute `csrf-token` is sent with it, in the header that the
     * attribute `csrf-header` names: X-CSRF-Token by default.
     */
    cancel(): Promise<boolean>;
  }

  interface ElementEvents {
    "job-state:update": CustomEvent<JobData>;
    "job-state:success": CustomEvent<JobData>;
    "job-state:error": CustomEvent<JobData>;
    "job-state:lost": CustomEvent<Reason>;
  }

  /** A job as the server describes it: every metric at the top, and two reserved names. */
  type JobData<Metrics extends object = AnyMetrics> = Metrics & {
    /** `working` covers every status of a job that has not ended. */
    job_state: "working" | "success" | "error";
    job: Job;
  };

  /** Metrics have whatever names and JSON values the actor sets. */
  interface AnyMetrics {
    [name: string]: any;
  }

  interface Job {
    uuid: string;
    kind: string;
    title: string;
    status:
      | "queued"
      | "working"
      | "retrying"
      | "stalled"
      | "cancelling"
      | "success"
      | "error"
      | "cancelled";
    url: string;
    /** The parameters that the job's class lists in `public_params`. */
    params: { [name: string]: any };
    progress: Progress | null;
    message: string | null;
    /** The last lines of the job's log. */
    log: string[];
    /** 1 for the first run. */
    attempt: number;
    /** Times are ISO 8601 in UTC, as `new Date()` takes them. */
    queued_at: string | null;
    due_at: string | null;
    started_at: string | null;
    updated_at: string | null;
    finished_at: string | null;
    /** Not ended, and this viewer may cancel it. */
    cancellable: boolean;
    error: { message: string } | null;
  }

  interface Progress {
    done: number;
    /** null: nobody knows how much there is. */
    total: number | null;
    unit: string | null;
    /** From 0 to 1. */
    fraction: number | null;
    /** Seconds from `updated_at` to the end, as the worker reckoned then. */
    eta: number | null;
  }
}

interface HTMLElementTagNameMap {
  "job-state": JobState.JobStateElement;
}

interface HTMLElementEventMap extends JobState.ElementEvents {}

interface DocumentEventMap extends JobState.ElementEvents {}

interface Window {
  readonly JobState: typeof JobState;
}
