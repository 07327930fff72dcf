/**
 * Types of job-state.js, a classic script that defines the global `JobState` and the
 * element `<job-state>`, and of job-state.mjs, the same as an ES module. The module exports
 * what the global has, by name and as a whole by default:
 *
 * ```js
 * import JobState, { follow } from "/job_state/static/job-state.mjs";
 * ```
 *
 * A page may load both: the first defines the element and the global, and the other one uses
 * them.
 *
 * The style sheet of the element is the `data-styles` of the script tag, or else
 * job-state.css beside the script or module, with its query. The tag of a module has no
 * `data-` attributes that it could see. job-state.js sees none either if it is imported, nor
 * where it lies: it uses `/job_state/static/job-state.css`.
 */
declare namespace JobState {
  /**
   * Follow one job until it ends: the callbacks get its states. Times are in milliseconds.
   *
   * Polls at once. If the answer offers a stream (`JobState-Stream: 1`), the server then
   * sends each new state as it arrives; otherwise the poller asks again `pollingPeriod`
   * after each answer, with one request at a time. Sleeps while the tab is hidden, and
   * backs off, up to 30 seconds, while the server is away, overloaded or failing.
   *
   * Jobs below one base URL share requests of up to 100 jobs. A request for a job that is
   * due includes the jobs that become due before that one is due again, so a job may be
   * asked for before its period is over, but it never causes an extra request. If the
   * server accepts only fewer jobs per request, or one, the requests shrink accordingly.
   * A job for which a shared answer has null (unknown, forbidden, or the session has ended)
   * is then asked for at its own URL, and that answer decides. Jobs that it leaves out, since
   * the others are large, are asked for at once. Those that have filled an answer share
   * requests without the others from then on, so that states that stay are not sent again.
   *
   * They also share streams of up to 100 jobs, or as few as the server accepts, at the URLs
   * of their polls. A job that is followed later is polled once, and then joins by a new
   * stream that replaces the old one. A page opens at most three streams, since browsers
   * allow only six connections to a server without HTTP/2; jobs beyond that are polled, and
   * join when there is room. A stream that fails, is silent for 50 seconds or has no first
   * event within five (a proxy holds it back) gives way to polls at once. The page tries
   * again after 15 seconds if that stream had worked, and otherwise polls from then on. A
   * hidden tab closes its streams; when shown, it polls at once and then streams again. While
   * hidden, it polls once a minute for pollers with `whileHidden`, and not at all for others.
   *
   * ```js
   * JobState.follow({
   *   jobUuid,
   *   update: (d) => { miles.textContent = d.miles_run; },
   *   success: () => location.reload(),
   *   error: (d) => { note.textContent = d.job.error.message; },
   *   lost: (reason) => { note.textContent = reason.message; },
   * });
   * ```
   *
   * @throws TypeError that names an invalid option
   */
  function follow<Metrics extends object = AnyMetrics>(
    options: PollingOptions<Metrics>
  ): Poller<Metrics>;

  /** The same function as {@link follow}, by the name that it had before it streamed. */
  const startPolling: typeof follow;

  /** What {@link follow} takes: which job, and what to call. */
  type PollingOptions<Metrics extends object = AnyMetrics> = JobAddress & {
    /**
     * Milliseconds from an answer to the next request: 1000 by default, at least 50.
     * Applies to polls only: a stream calls `update` as states arrive.
     */
    pollingPeriod?: number;

    /**
     * Also poll while the tab is hidden, once a minute: browsers allow hidden tabs no more.
     * By default, the poller sleeps until the tab shows.
     */
    whileHidden?: boolean;

    /**
     * Called with each state that was received, including the last one, just before `success`
     * or `error`. May get the same data twice. The first `update` after a `lost` means
     * that the server is back.
     */
    update?: ((data: JobData<Metrics>) => void) | null;

    /** The job has succeeded. Called once, as the last callback. */
    success?: ((data: JobData<Metrics>) => void) | null;

    /**
     * The job has failed or was cancelled: `data.job.status` says which, and
     * `data.job.error` why. Called once, as the last callback. Failing to reach the server
     * is not an error of the job: it calls `lost`.
     */
    error?: ((data: JobData<Metrics>) => void) | null;

    /**
     * The job cannot be seen.
     *
     * With `reason.final === false` the server is away, overloaded or failing. Called once
     * per outage; the poller tries again in `reason.retryIn` milliseconds, or the stream
     * goes on by itself, and `update` follows. With `reason.final === true` the poller gives
     * up (401, 403, 404, 410 or another 4xx, a redirect, or an answer that is not the state
     * of a job); this is the last callback. Without a `lost` callback, giving up writes a
     * warning to the console.
     */
    lost?: ((reason: Reason) => void) | null;

    /** The token that cancel() sends, if the application checks CSRF tokens. */
    csrfToken?: string | null;

    /**
     * The header for the token: by default X-CSRF-Token, as in Pyramid. A name that
     * browsers refuse or reserve (`Cookie`) is a TypeError.
     */
    csrfHeader?: string | null;

    /** Aborting it stops the poller, as stop() does. */
    signal?: AbortSignal | null;

    /**
     * Allow a URL of another origin, which is a TypeError by default, and send it its
     * cookies. That server must allow it by CORS, with credentials. Unless it also sends
     * `Access-Control-Expose-Headers: JobState-Stream`, the page does not see the offer of
     * a stream, and polls.
     */
    crossOrigin?: boolean;
  };

  /** Which job: a uuid below a base URL, or a URL. */
  type JobAddress =
    | {
        jobUuid: string;
        /**
         * Default: the script tag's `data-base-url`, or else the location of the script or
         * module (`…/static/job-state.js` on the page's origin, or a longer name such as
         * `job-state-3f2a91.js`), or else `/job_state`.
         */
        baseUrl?: string;
        url?: null;
      }
    | {
        /**
         * What `request.resource_url(job_state)` returns. It may be relative to the page,
         * or to its `<base>` unless that has another origin. If the last segment is a
         * uuid, the rest is a base URL, as for `jobUuid`; any other URL, or one with a
         * query, gets requests of its own.
         */
        url: string | URL;
        jobUuid?: null;
        baseUrl?: string;
      };

  /** What {@link follow} returns: one caller's hold on one job. */
  interface Poller<Metrics extends object = AnyMetrics> {
    /**
     * Stop following the job: abort its request in flight, or close its stream, unless other
     * jobs share it, and call no more callbacks.
     */
    stop(): void;

    /**
     * Ask the server to cancel the job, then poll at once, unless a stream will bring the
     * new state. Resolves to true if the server accepts (a running job learns of it a moment
     * later), or to false if the job had already ended. Works on a stopped poller too.
     *
     * Rejects with a {@link Failure} if the server refuses or is away.
     */
    cancel(): Promise<boolean>;

    /** What brought the last answer; null before the first one. */
    readonly transport: Transport | null;

    /**
     * The time now, in milliseconds since 1970, by the store's clock, which the job's own
     * times are of. Until an answer or a stream has told it (an older server does not): by
     * the browser's.
     */
    readonly now: number;

    /** Resolves when the poller has ended, after its last callback. Never rejects. */
    readonly done: Promise<Outcome<Metrics>>;
  }

  /** How states reach the page. */
  type Transport = "stream" | "poll";

  /** How a poller ended. `data` is the last data, or null if it never got any. */
  type Outcome<Metrics extends object = AnyMetrics> =
    | { outcome: "success" | "error"; data: JobData<Metrics>; reason: null }
    | { outcome: "lost"; data: JobData<Metrics> | null; reason: Reason }
    | { outcome: "stopped"; data: JobData<Metrics> | null; reason: null };

  /** Why the server gave no useful answer; `message` is an English sentence. */
  interface Failure extends Error {
    /**
     * `network`: no answer; `timeout`: no answer within 30 seconds; `status`: see `status`;
     * `redirect`: perhaps to a login page; `format`: not the state of a job; `csrf`: the
     * application's CSRF check has refused a cancel. Elements only: `address`: the `src` is
     * wrong or has another origin; `csrf`: also a `csrf-header` or `csrf-token` that a browser
     * cannot send.
     */
    code: "network" | "timeout" | "status" | "redirect" | "format" | "address" | "csrf";
    /** The HTTP status, or 0 without one. */
    status: number;
    /** Whether asking again is useless. */
    final: boolean;
  }

  /** The argument of `lost`. */
  type Reason = Failure &
    (
      | { final: true }
      | {
          final: false;
          /**
           * Milliseconds until the next try, unless the tab is hidden and shown before. While
           * a stream reports the outage, the period: the state may come at any time.
           */
          retryIn: number;
        }
    );

  /**
   * Ask the viewer for permission to notify, for elements with the attribute `notify`. Call
   * it from a click: browsers refuse, or hide, the question otherwise.
   *
   * Resolves to whether the page may notify: false if the viewer refuses, or has refused
   * before, and where there are no notifications. Never rejects.
   */
  function askToNotify(): Promise<boolean>;

  /**
   * Words for the elements of the page in every language without words of its own. Set
   * them before the elements show. The default is English, and is marked as English on a
   * page of another language.
   *
   * ```js
   * JobState.labels = { working: "Baking", left: "{time} to go" };
   * ```
   */
  let labels: Labels;

  /**
   * Set the words for elements in one language (their `lang`, or that of the page), such as
   * `de` or `de-AT`. An element in `de-AT` takes those of `de` if `de-AT` has none. Words that
   * are left out stay as they were. Elements that show already are drawn anew.
   *
   * ```js
   * JobState.setLabels("de", { working: "Läuft", left: "noch {time}" });
   * ```
   */
  function setLabels(language: string, labels: Labels): void;

  /**
   * The words, by name. The names in braces in the English words are placeholders. An
   * element's attribute `label-…` (such as `label-cancel`) overrides them; `label-job` is
   * its title.
   */
  type Labels = { [Name in Label]?: string };

  /** The names of the words. */
  type Label =
    // the title of a job without one
    | "job"
    // by state
    | State
    // {time}: what a queued job says in place of its state
    | "due"
    | "waiting"
    // {time}
    | "retry"
    | "left"
    | "took"
    // {time}: how long such jobs run, perhaps a range: {low}, {high}
    | "usual"
    | "range"
    // what a job says that has run for longer than 95% of them
    | "longer"
    // {number}
    | "attempt"
    // {done} {unit}, {total}
    | "amount"
    | "amount-of"
    // {amount}, {count}: a batch's amount and how many failed or were cancelled
    | "amount-count"
    // the unit of a batch, which the server calls "jobs"
    | "members"
    // {number} of a batch's members
    | `count-${keyof MemberCounts}`
    // {phase}: {amount}
    | "phase"
    // {amount}, per second and per minute
    | "rate"
    | "rate-slow"
    | "cancel"
    // {reason}
    | "cancel-failed"
    // the reason of a cancelled job that is left out, as the server words it
    | "reason-cancelled"
    | "log"
    // the link to the result
    | "result"
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

  /** What an element shows: the status of the job, or why it cannot be seen. */
  type State = Job["status"] | "loading" | "reconnecting" | "lost";

  /**
   * `<job-state src="…">`: a job's progress, until it ends.
   *
   * Its content shows until the first answer, and permanently, below the bar, if it has
   * descendants with `data-metric`: their text becomes the value of that metric. So does
   * the text of any element with `data-metric` whose `data-job` (or `for`) is the id of this
   * element. A number is written in the page's language with up to three decimals, and one
   * below 1 with four digits. If the job has no such metric (any more), because it runs again
   * or because `src` has changed, the text is what it was before the first value: put a
   * placeholder there rather than a value.
   *
   * ```html
   * <job-state id="run" src="/job_state/…/" cancellable csrf-token="…">
   *   <b data-metric="miles_run">0</b> miles
   * </job-state>
   * <span data-metric="strides" data-job="run"></span>
   * ```
   *
   * A queued job says how long it has waited for a worker ("Waiting for 40 sec"), or when it
   * starts, in the viewer's zone and language. The text counts on by itself, by
   * {@link Poller.now}; screen readers are told the state only.
   *
   * Until a working job reports how far it is, it says how long jobs of its kind usually run
   * ("usually runs 2 to 3 min") or, if 95% of them took less, "longer than usual".
   *
   * A batch says how many of its jobs are over and how many of them failed or were cancelled
   * ("118 of 120 jobs, 2 failed"), and below that how many succeeded, failed, were cancelled,
   * run, wait or are tried again, zeros left out. The bar is parted by how they ended, and by
   * what the others have done. A share is never too small to be seen.
   *
   * Unless custom properties set them, text has the page's colour, and the other colours are
   * derived from it, so the element needs no setting for light and dark. Sizes follow the
   * font. What the element takes and has: {@link ElementAttributes}, {@link ElementEvents},
   * {@link Part} and {@link CustomProperty}.
   */
  class JobStateElement extends HTMLElement {
    /** Attribute `src`; empty without one. */
    src: string;
    /** Attribute `period`: milliseconds between polls, 1000 by default. */
    period: number;
    /** Attribute `cancellable`: show a cancel button. */
    cancellable: boolean;
    /** Attribute `log`: show the job's log. */
    log: boolean;
    /**
     * The last data. Setting it shows it, without an event. An element outside the page is
     * drawn when it is inserted.
     */
    data: JobData | null;
    /** What it shows, as in its attribute `state`. */
    readonly state: State;
    /**
     * How the last event arrived; null before a job's first event. Kept after the job ends.
     */
    readonly transport: Transport | null;
    /**
     * Like {@link Poller.cancel}; also resolves to false while an earlier call waits for its
     * answer, or if the element follows no job.
     */
    cancel(): Promise<boolean>;
  }

  /**
   * The attributes of `<job-state>`. All may change at any time. Those that are boolean are
   * on if they stand there, whatever their value.
   */
  interface ElementAttributes extends LabelAttributes {
    /**
     * The URL of the job: what `request.resource_url(job_state)` returns. Once the job has
     * ended, the element asks again only when `src` changes.
     */
    src?: string;
    /** Milliseconds between polls: 1000 by default, at least 50. */
    period?: number;
    /** Show a cancel button to viewers who may cancel the job. */
    cancellable?: boolean;
    /** Show the last lines of the job's log, 20 at most. */
    log?: boolean;
    /** Take one line, 2.5 em high, without the log, the link to the result and the counts. */
    compact?: boolean;
    /**
     * Tell of the job's end in a hidden tab, which then polls once a minute. A bullet stands
     * before `document.title` until the page shows. If the viewer has already given
     * permission (see {@link askToNotify}), the browser also shows a notification: one for
     * each job, whatever the number of elements, and tabs replace each other's. Its text is
     * the value of the attribute if the job succeeds, and otherwise, or without a value, the
     * job's title and the word for its state. A job that had ended before the page first
     * showed it is not news.
     */
    notify?: boolean | string;
    /** The token that a cancel sends, if the application checks CSRF tokens. */
    "csrf-token"?: string;
    /** The header for the token: X-CSRF-Token by default. */
    "csrf-header"?: string;
    /** Allow a `src` of another origin: see `crossOrigin` in {@link PollingOptions}. */
    "cross-origin"?: boolean;
    /** The language of words, numbers and times: by default, that around the element. */
    lang?: string;
  }

  /** Words for one element, such as `label-working="Baking"`; `label-job` is its title. */
  type LabelAttributes = { [Name in Label as `label-${Name}`]?: string };

  /** The events of `<job-state>`. They bubble, out of shadow roots as well. */
  interface ElementEvents {
    /** A state was received, perhaps the same as before. The last one, too. */
    "job-state:update": CustomEvent<JobData>;
    /** The job has succeeded. */
    "job-state:success": CustomEvent<JobData>;
    /** The job has failed or was cancelled: `detail.job.status` says which. */
    "job-state:error": CustomEvent<JobData>;
    /**
     * The job cannot be seen, for now or, with `detail.final`, until `src` is set again.
     * Fires once for each outage.
     */
    "job-state:lost": CustomEvent<Reason>;
  }

  /** The parts of an element, for `::part()`. */
  type Part =
    // all that it draws
    | "job"
    // the line of icon, title, percentage and cancel button
    | "head"
    // the icon of the state: a circle, and a sign in it
    | "icon"
    | "ring"
    | "sign"
    | "title"
    | "percent"
    // the cancel button
    | "cancel"
    // the bar, and how far it is filled; hidden if the job ended without progress
    | "bar"
    | "fill"
    // of a batch's bar: how the members that are over ended
    | "share-success"
    | "share-error"
    | "share-cancelled"
    // the line of status, details and the time left
    | "foot"
    | "status"
    | "details"
    | "left"
    // of a batch: the line of the numbers of its members, and each number
    | "counts"
    | `count-${keyof MemberCounts}`
    // what the job says of itself while it is under way, or of its success
    | "message"
    // why it failed, was cancelled, could not be cancelled or cannot be seen
    | "notice"
    // the link to the result
    | "result"
    | "log";

  /**
   * The custom properties that an element takes, on itself or above. Colours that a page sets
   * are used as they are. The pages of pyramid_jobstate take some of them, too, and others:
   * see job-state-pages.css.
   */
  type CustomProperty =
    // running jobs, the focus and the link to the result: a blue by default
    | "--job-state-accent"
    // jobs and members of a batch that have succeeded: a green
    | "--job-state-success"
    // jobs that are tried again, stalled, being cancelled or out of touch: an amber
    | "--job-state-warning"
    // jobs that have failed or are out of reach, and why: a red
    | "--job-state-error"
    // jobs that wait or were cancelled, and text below the bar: by default, the text's colour
    | "--job-state-muted"
    // the empty part of the bar, and the border of the log: the text's colour at 16 %
    | "--job-state-track"
    // the height of the bar: .375em
    | "--job-state-bar-height"
    // the radius of its corners: 99em, so that its ends are round
    | "--job-state-radius";

  /** The JSON of a job: every metric at the top level, and two reserved names. */
  type JobData<Metrics extends object = AnyMetrics> = Metrics & {
    /** `working` covers every status of a job that has not ended. */
    job_state: "working" | "success" | "error";
    job: Job;
  };

  /** Metrics: any names and JSON values that the actor sets. */
  interface AnyMetrics {
    [name: string]: any;
  }

  /** What every job has, whatever its metrics. */
  interface Job {
    uuid: string;
    /** The `kind` of the job's class: by default, the name of the class. */
    kind: string;
    /** The heading for viewers, in their language. */
    title: string;
    /** The last three are ends. */
    status:
      | "queued"
      | "working"
      | "retrying"
      | "stalled"
      | "cancelling"
      | "success"
      | "error"
      | "cancelled";
    /** Where to ask for the job, for people too if the application has the pages. */
    url: string;
    /** The parameters that the job's class lists in `public_params`. */
    params: { [name: string]: any };
    /** How far the job has come; null before it has reported any progress. */
    progress: Progress | null;
    /** Batches only: how many of the members are what. */
    counts?: MemberCounts;
    /** Batches only: the URL of the list of the members. */
    members?: string;
    /** The innermost phase that is open. */
    phase: Phase | null;
    /** What the job last said of itself. */
    message: string | null;
    /** The last lines of the job's log, 20 at most. */
    log: string[];
    /** 1 for the first run. */
    attempt: number;
    /**
     * How long jobs of its kind usually run, in seconds: the middle half between `low` and
     * `high`, and 95% at most `p95`. Null unless the status is "working", if too little is
     * known, and if its class sets `show_usual = False`.
     */
    usual: { low: number; high: number; p95: number } | null;
    /** When the job was sent. Times are ISO 8601 in UTC, as `new Date()` takes them. */
    queued_at: string | null;
    /** When it is due, if it was delayed or is tried again, and has not started since. */
    due_at: string | null;
    /** When its newest run began. */
    started_at: string | null;
    /** When it last changed or reported. */
    updated_at: string | null;
    /**
     * The same, once a running job has reported nothing for so long that no time left holds
     * any more: the longer of 15 seconds and twice `progress.eta`. Null until then.
     */
    quiet_since: string | null;
    /** When it ended. */
    finished_at: string | null;
    /** Whether the job has not ended and this viewer may cancel it. */
    cancellable: boolean;
    /** Why it failed, is tried again or was cancelled, in words for viewers. */
    error: { message: string } | null;
    /** Where the job's result is, if it succeeded and has one. */
    result: { url: string } | null;
  }

  /** How many members of a batch have which status. */
  type MemberCounts = {
    [Status in Exclude<Job["status"], "stalled" | "cancelling">]: number;
  };

  /** A phase of a job that reports its work in several loops. */
  interface Phase {
    name: string;
    /** The names of the open phases, from the outermost one to this. */
    path: string[];
    /** How far its loop has come, from 0 to 1; null if that is unknown. */
    fraction: number | null;
  }

  /** How far a job has come. */
  interface Progress {
    /** What the current loop has done. */
    done: number;
    /** null if unknown. */
    total: number | null;
    /** What is counted, such as "miles"; null if the job does not say. */
    unit: string | null;
    /** How far the whole job has come, from 0 to 1. */
    fraction: number | null;
    /** Seconds from `updated_at` to the end, as the worker estimated then; null once quiet. */
    eta: number | null;
  }

  /** The JSON of `GET …/counts`: approximate numbers of jobs, and the kinds of all. */
  interface Counts {
    counts: { [Status in Job["status"]]: number };
    /** Seconds for which the oldest waiting job has waited for a worker; null if none waits. */
    oldest_wait: number | null;
    /** The median wait of the last ten jobs to start, in seconds; null if unknown. */
    recent_wait: number | null;
    kinds: string[];
  }

  /** The JSON of `GET …/{uuid}/inspect`, for operators only: it may hold secrets. */
  interface Inspection {
    uuid: string;
    /** The name of the actor, and the queue of the message, if known; null for a batch. */
    actor: string | null;
    queue: string | null;
    /** Host and pid of the worker that runs the job, or has run it last. */
    worker: string | null;
    /** All parameters of the job. */
    params: { [name: string]: any };
    /** Why the job failed, is retried or was cancelled. */
    error: JobError | null;
    /** The end of the last traceback. */
    traceback: string | null;
    /** The last ten runs that failed, the oldest first. */
    tries: (JobError & { started_at: string | null; ended_at: string | null })[];
    /** Whether the job can run again. */
    repeatable: boolean;
    /** Why it cannot. */
    reason: string | null;
    /** Where the job is, if somebody has asked with `POST …/{uuid}/stack`. */
    where: Whereabouts | null;
  }

  /** Where a running job is, as its worker has answered. */
  interface Whereabouts {
    asked_at: string;
    /** When the worker answered; null while it has not. */
    taken_at: string | null;
    worker: string | null;
    thread: string | null;
    /** The bytes of memory that the process used. */
    memory: number | null;
    /** The innermost call last, as in a traceback. */
    stack: string | null;
  }

  /** A line of a log. The JSON of `GET …/{uuid}/log` is `{ lines: LogLine[] }`. */
  interface LogLine {
    /** Its number in the log, from 1. Numbers are missing where the viewer gets no line. */
    number: number;
    time: string;
    /** The name of its level, and of its logger; null for a line of `append_log()`. */
    level: string | null;
    logger: string | null;
    attempt: number;
    text: string;
  }

  /** Why a job or one of its runs failed, for operators. */
  interface JobError {
    /** The qualified name of the exception, or null for a reason that is not one. */
    type: string | null;
    message: string;
  }

  /** The JSON of a request that acts on many jobs. */
  interface BulkResult {
    /** How many jobs it acted on. */
    done: number;
    /** How many matching jobs it left alone, if the viewer may list all jobs. */
    refused?: number;
    /** To pass to the next request with the same parameters; null if nothing is left. */
    cursor: string | null;
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
