/*!
 * job-state.js: the browser side of pyramid_jobstate.
 *
 *   <job-state src="/job_state/…/"></job-state>
 *   JobState.follow({jobUuid, update, success, error, lost})
 *
 * A script without dependencies that defines window.JobState, the element and nothing
 * else. job-state.mjs is the same as an ES module. job-state.d.ts beside this file documents
 * every option, callback, attribute and event.
 */
(() => {
"use strict";

// All times are milliseconds.
const DEFAULT_PERIOD = 1000;
const MIN_GAP = 50; // between a job's answer and its next request, in any case
const GATHER = 10; // lets the other jobs of the page join the first request
const MAX_BACKOFF = 30 * 1000;
const MAX_RETRY_AFTER = 5 * 60 * 1000;
const REQUEST_TIMEOUT = 30 * 1000;
const MINUTE = 60 * 1000;
const MAX_PERIOD = 2 ** 30; // setTimeout fires at once from twice this value
const FIRST_EVENT = 5 * 1000; // a proxy that buffers lets nothing through
const SILENCE = 50 * 1000; // the server sends a beat every 20 seconds
const RETRY = 8 * 1000; // the browser opens a lost stream again after 1 to 3 seconds
const PAUSE = 15 * 1000; // after a stream that had worked
const FIRST_ANSWERS = 1000; // a stream waits that long for those of other jobs
const MAX_STREAMS = 3; // a browser opens only 6 connections to a server without HTTP/2

// The statuses of a batch's members, in the order of the bar's shares and of the counts.
const COUNTED = ["success", "error", "cancelled", "working", "queued", "retrying"];
const OVER = COUNTED.slice(0, 3);

const ENGLISH = {
  job: "Job",
  loading: "Loading…",
  queued: "Waiting",
  working: "Running",
  retrying: "Trying again",
  stalled: "No sign of life",
  cancelling: "Cancelling…",
  success: "Done",
  error: "Failed",
  cancelled: "Cancelled",
  reconnecting: "Connection lost, trying again…",
  lost: "Unavailable",
  due: "Starts at {time}",
  waiting: "Waiting for {time}",
  retry: "next try at {time}",
  attempt: "attempt {number}",
  amount: "{done} {unit}",
  "amount-of": "{done} of {total} {unit}",
  "amount-count": "{amount}, {count}",
  members: "jobs",
  "count-success": "{number} succeeded",
  "count-error": "{number} failed",
  "count-cancelled": "{number} cancelled",
  "count-working": "{number} running",
  "count-queued": "{number} waiting",
  "count-retrying": "{number} trying again",
  phase: "{phase}: {amount}",
  rate: "{amount}/s",
  "rate-slow": "{amount}/min",
  left: "about {time} left",
  usual: "usually runs {time}",
  range: "{low} to {high}",
  longer: "longer than usual",
  took: "took {time}",
  cancel: "Cancel",
  "cancel-failed": "Not cancelled: {reason}",
  "reason-cancelled": "The job was cancelled.",
  log: "Log",
  result: "Open the result",
  // Why the server gave no useful answer
  401: "You are not signed in.",
  403: "You may not do this.",
  404: "The job does not exist, or has expired.",
  410: "The job no longer exists.",
  address: "The address is wrong.",
  csrf: "The CSRF header or token is wrong.",
  format: "The answer is not the state of a job.",
  network: "The server cannot be reached.",
  redirect: "The server redirects, perhaps to a login page.",
  status: "The server answered {status}.",
};

const IN_ENGLISH = "\ufdd0"; // stands in texts made of ENGLISH on a page of another language

/** A text as it is shown. */
function unmarked(text) {
  return text.split(IN_ENGLISH).join("");
}

/** The language of a text, or null for that of the page. */
function languageOf(text) {
  return text.includes(IN_ENGLISH) ? "en" : null;
}

/**
 * A property of the document itself. `document.body` may be an element of that name
 * instead, such as `<form name="body">`.
 */
const ofDocument = (name) => Reflect.get(Document.prototype, name, document);

// Set only while a classic script runs. The tag of an SVG script does not configure ours.
const current = ofDocument("currentScript");
const script = current instanceof HTMLScriptElement ? current : make("script");
const { baseUrl, styles } = script.dataset;
// The property `src` follows any <base>, even one that came after the tag.
// A blob: or data: URL has nothing beside it.
const USUAL = "/job_state/static/job-state.js";
const home = resolve("", resolve(script.getAttribute("src") || USUAL)) || resolve(USUAL);
// A query that busts caches applies to the style sheet too.
const sheetUrl = (styles && resolve(styles)) || new URL(`job-state.css${home.search}`, home);
const defaultBaseUrl = baseUrl || mountOf(home) || "/job_state";

/** Where the application serves its jobs, if the script lies in the folder beside them. */
function mountOf({ origin, pathname }) {
  const match = /^(.+)\/static\/job-state([-.][^/]*)?\.m?js$/.exec(pathname);
  return origin === self.origin && match ? match[1] : null;
}

/** Follow one job. See job-state.d.ts. */
function follow(options) {
  const { place, period, csrf, signal } = checkOptions(options);
  const watch = new Watch(options, period);
  const stop = () => watch.end("stopped");
  signal.addEventListener("abort", stop);
  const job = Channel.follow(place, watch);
  watch.release = () => {
    job.channel.leave(job, watch);
    signal.removeEventListener("abort", stop);
  };
  if (signal.aborted) stop();
  return {
    stop,
    done: watch.done,
    get transport() {
      return job.transport;
    },
    get now() {
      const clock = clocks.get(place.base);
      return clock ? Math.round(performance.now() + clock.offset) : Date.now();
    },
    async cancel() {
      const accepted = await askToCancel(place, csrf);
      job.again = true;
      job.hurry();
      job.channel.plan();
      return accepted;
    },
  };
}

/**
 * One caller's interest in one job: the callbacks, the last data, and the outcome.
 * Does not know requests or timers; `release` tells them that the watch is over.
 */
class Watch {
  constructor(callbacks, period) {
    this.callbacks = callbacks;
    this.period = period;
    this.data = null;
    this.outage = false;
    this.ended = false;
    this.done = new Promise((resolve) => (this.resolve = resolve));
  }

  receive(data) {
    if (this.ended) return;
    this.data = data;
    this.outage = false;
    this.call("update", data);
    if (data.job_state !== "working") this.end(data.job_state);
  }

  lose(reason) {
    if (reason.final) {
      this.end("lost", reason);
    } else if (!this.outage && !this.ended) {
      this.outage = true;
      this.call("lost", reason);
    }
  }

  end(outcome, reason = null) {
    if (this.ended) return;
    this.ended = true;
    this.release();
    // Explain in the console why the page stands still.
    if (reason && !this.callbacks.lost) console.warn(`JobState: ${reason.message}`);
    if (outcome !== "stopped") this.call(outcome, reason || this.data);
    this.resolve({ outcome, data: this.data, reason });
  }

  call(name, argument) {
    const callback = this.callbacks[name];
    if (callback) attempt(() => callback(argument), `the callback "${name}" threw`);
  }
}

/** What a function returns, or null if it throws. A complaint goes to the console. */
function attempt(act, complaint) {
  try {
    return act();
  } catch (error) {
    if (complaint) console.error(`JobState: ${complaint}`, error);
    return null;
  }
}

/** One job: its watches, its last data, and when to ask for it next. */
class Job {
  constructor(channel, { uuid, url }) {
    this.channel = channel;
    this.uuid = uuid;
    this.url = url;
    this.watches = new Set();
    this.data = null;
    this.tag = null; // of the answer that held the data
    this.part = null; // that of the jobs with which it has filled an answer
    this.due = Infinity;
    this.earliest = 0;
    this.again = false; // the answer in flight will be out of date
    this.alone = false; // missing from a batch: its own URL says why
    this.peers = []; // the jobs that disappeared together with this one
    this.failures = 0; // in a row
    this.offered = false; // the last answer to a poll offered a stream
    this.feed = null; // takes the place of polls
    this.transport = null; // of the last answer
  }

  get period() {
    const period = Math.min(...[...this.watches].map((watch) => watch.period));
    return ofDocument("hidden") ? Math.max(period, MINUTE) : period;
  }

  /** Ask as soon as possible, before a stream brings the job, unless one does already. */
  hurry(gather = 0) {
    if (this.feed) return;
    this.offered = false;
    this.due = Math.min(this.due, Math.max(this.earliest, performance.now() + gather));
  }

  /** Ask after a pause, or at once if a refresh was requested meanwhile. */
  rest(pause, now) {
    this.earliest = now + MIN_GAP;
    this.due = this.again ? this.earliest : now + pause;
  }

  receive(data) {
    this.data = data;
    this.tell((watch) => watch.receive(data));
  }

  /** Pass on the last data, still current, to watches without data or in an outage. */
  confirm() {
    this.tell((watch) => {
      if (watch.outage || !watch.data) watch.receive(this.data);
    });
  }

  lose(reason) {
    this.tell((watch) => watch.lose(reason));
  }

  tell(act) {
    this.transport = this.feed ? "stream" : "poll";
    [...this.watches].forEach(act);
  }
}

const feeds = new Set(); // all open streams of the page
const failed = new Set(); // streams that rule out others of their base URL, some for a while
const pollOnly = new Set(); // URLs of jobs that left a stream

/**
 * One stream, from its opening until it is closed or fails, and the jobs that it brings.
 * If the server ends it, the browser opens it again, and nobody is told.
 */
class Feed {
  constructor(channel, jobs) {
    this.channel = channel;
    this.jobs = new Set(jobs);
    this.size = jobs.length;
    this.worked = false; // it had an event
    this.retry = 0; // the timer of a lost connection
    failed.add(this); // stays there if EventSource is missing or throws
    this.source = new EventSource(channel.urlOf(jobs), { withCredentials: true });
    for (const type of ["open", "error", "message", "gone", "away", "beat"]) {
      this.source.addEventListener(type, this);
    }
    failed.delete(this);
    this.silence = setTimeout(() => this.fail(), FIRST_EVENT);
    for (const job of jobs) {
      job.feed = this;
      job.due = Infinity;
      job.tag = null;
    }
    feeds.add(this);
  }

  handleEvent({ type, data }) {
    if (type === "error") {
      this.disconnected();
      return;
    }
    clearTimeout(this.retry);
    this.retry = 0;
    if (type === "open") return;
    const state = type === "message" ? attempt(() => JSON.parse(data)) : null;
    if (type === "message" && !isJob(state)) {
      this.fail();
      return;
    }
    this.worked = true;
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.fail(), SILENCE);
    if (type === "beat") this.channel.setClock(data);
    if (type === "away") [...this.jobs].forEach((job) => job.lose(away(job)));
    if (type === "message") this.meant(state.job.uuid).forEach((job) => job.receive(state));
    if (type === "gone") this.meant(data).forEach((job) => this.release(job));
    this.channel.plan();
  }

  /** The browser opens a lost connection again, unless it has given up. */
  disconnected() {
    if (this.source.readyState === EventSource.CLOSED) this.fail();
    else this.retry = this.retry || setTimeout(() => this.fail(), RETRY);
  }

  /** The jobs that an event is about: that of a stream of one job names none. */
  meant(uuid) {
    return [...this.jobs].filter((job) => this.size === 1 || job.uuid === uuid);
  }

  /** Leave a job to polls, for good. */
  release(job) {
    pollOnly.add(job.url);
    this.leave(job);
    job.hurry(GATHER);
  }

  leave(job) {
    job.feed = null;
    this.jobs.delete(job);
    if (!this.jobs.size) this.close();
  }

  /** Poll the jobs before anything streams them again. */
  close() {
    clearTimeout(this.silence);
    clearTimeout(this.retry);
    this.source.close();
    feeds.delete(this);
    for (const job of this.jobs) {
      job.feed = null;
      job.hurry();
    }
  }

  fail() {
    this.close();
    failed.add(this);
    this.channel.plan();
    if (!this.worked) return;
    setTimeout(() => {
      failed.delete(this);
      this.channel.plan();
    }, PAUSE);
  }
}

/** Why a job is lost whose server does not reach the store. */
function away({ period }) {
  return Object.assign(problem("status", 503), { retryIn: period });
}

const channels = new Map();
const clocks = new Map(); // the store's clock by base URL, compared with performance.now()

/**
 * All jobs that are followed below one base URL. They share their requests: at most one
 * at a time, and none while the page is hidden. A job may be asked for before its period
 * is over if that saves a request of its own, but never after. If not all that are due fit
 * into one request, those that have waited longest come first. After a first poll, jobs that
 * the server offers to stream share a stream instead.
 */
class Channel {
  /** Returns the job. */
  static follow(place, watch) {
    const { base, uuid } = place;
    const channel = channels.get(base) || new Channel(base);
    const job = channel.jobs.get(uuid) || new Job(channel, place);
    channels.set(base, channel);
    channel.jobs.set(uuid, job);
    job.watches.add(watch);
    job.hurry(GATHER);
    channel.plan();
    // A job that is streamed already is not polled again for its next watch.
    Promise.resolve().then(() => {
      if (job.feed && !watch.data) watch.receive(job.data);
    });
    return job;
  }

  constructor(base) {
    this.base = base;
    this.jobs = new Map();
    this.asked = []; // the jobs of the request in flight
    this.limit = 100; // jobs in one request
    this.patience = PAUSE; // until a batch is tried again after those of one job
    this.failures = 0; // of requests in a row
    this.pausedUntil = 0; // after these
    this.notBefore = 0;
    this.timer = null;
    this.controller = null; // of the request in flight
    this.away = false; // the page was left, perhaps into the back/forward cache
    this.unseen = false; // it was hidden at its last event
    this.listen("addEventListener");
  }

  leave(job, watch) {
    job.watches.delete(watch);
    if (job.watches.size) {
      this.plan(); // perhaps only the one that left was awake
      return;
    }
    this.jobs.delete(job.uuid);
    if (job.feed) job.feed.leave(job);
    if (!this.jobs.size) {
      channels.delete(this.base);
      this.listen("removeEventListener");
    }
    if (this.asked.every(({ watches }) => !watches.size)) {
      if (this.controller) this.controller.abort();
      this.plan();
    }
  }

  /**
   * Follow the store's clock, as an answer or a beat tells it. One that is late tells an
   * earlier time: only if several do so has the clock been set back.
   */
  setClock(millis) {
    if (!/^\d{1,15}$/.test(millis)) return;
    const offset = millis - performance.now();
    const clock = clocks.get(this.base);
    const late = clock && offset < clock.offset - 1000 ? clock.late + 1 : 0;
    if (!clock || offset > clock.offset || late > 2) {
      clocks.set(this.base, { offset, late: 0 });
      if (clock && Math.abs(offset - clock.offset) > 1000) connected.forEach(refresh);
    } else clock.late = late;
  }

  /** Capture at the window: other listeners cannot stop the events before us. */
  listen(method) {
    for (const type of ["visibilitychange", "online", "pageshow", "pagehide"]) {
      window[method](type, this, true);
    }
  }

  handleEvent({ type, target }) {
    if (target !== window && target !== document) return;
    if (type === "pagehide") {
      // Browsers cut off requests when they leave a page. This is not an outage.
      this.away = true;
      if (this.controller) this.controller.abort();
    } else if (type === "pageshow") this.away = false;
    const before = this.unseen;
    this.unseen = ofDocument("hidden");
    // A hidden page keeps to its minute.
    if (!before || !this.unseen) for (const job of this.jobs.values()) job.hurry();
    this.plan();
  }

  /** The jobs to ask for: in a hidden page, those of watches that want it. */
  get awake() {
    const all = this.away ? [] : [...this.jobs.values()];
    if (!ofDocument("hidden")) return all;
    return all.filter(({ watches }) => [...watches].some((watch) => watch.callbacks.whileHidden));
  }

  /** Stream what can be streamed, and ask when the next of the other jobs is due. */
  plan() {
    clearTimeout(this.timer);
    if (!this.jobs.size) return;
    const isHidden = this.away || ofDocument("hidden");
    if (isHidden) feeds.forEach((feed) => feed.close());
    const now = performance.now();
    const jobs = this.awake;
    if (!isHidden) this.stream(jobs, now);
    if (this.controller) {
      // Its answer may take longer than the jobs with an offer should wait.
      const offers = jobs.filter((job) => job.offered).map((job) => job.earliest + FIRST_ANSWERS);
      const next = Math.min(...offers);
      if (next > now && next < Infinity) this.timer = setTimeout(() => this.plan(), next - now);
      return;
    }
    const due = Math.max(this.notBefore, Math.min(...jobs.map((job) => job.due)));
    if (due <= now) this.run(now);
    // Plan again in any case: another script may have kept an event from this one.
    else if (due > now + MINUTE) this.timer = setTimeout(() => this.plan(), MINUTE);
    else this.timer = setTimeout(() => this.run(due), due - now);
  }

  /**
   * Stream what polls still bring, unless jobs that may join are asked for soon, and not if
   * their answers are slow or many. New jobs replace the streams by others that have them,
   * too, but only once these have worked: else a page that keeps adding jobs would not
   * notice that its streams fail. Jobs beyond the last stream wait for their next poll to be
   * considered again: else each end of a job would replace the streams.
   */
  stream(all, now) {
    const old = [...feeds].filter((feed) => feed.channel === this);
    const jobs = all.filter((job) => job.feed || job.offered);
    const room = MAX_STREAMS - feeds.size + old.length;
    for (const job of jobs.splice(room * this.limit)) job.offered = false;
    const isNothingNew = jobs.every((job) => job.feed);
    const isComplete = all.every((job) => job.offered || job.due > now + GATHER);
    const isLate = jobs.some((job) => job.offered && job.earliest + FIRST_ANSWERS <= now);
    const haveWorked = old.every((feed) => feed.worked);
    // One that was larger than what the server takes now was only too large.
    const hasFailed = [...failed].some(
      ({ channel, size }) => channel.base === this.base && size <= channel.limit
    );
    if (isNothingNew || hasFailed || !haveWorked || !(isComplete || isLate)) return;
    old.forEach((feed) => feed.close());
    while (jobs.length) attempt(() => new Feed(this, this.share(jobs)));
  }

  /** Take the jobs of one request from a list, so that all requests have about as many. */
  share(jobs) {
    return jobs.splice(0, Math.ceil(jobs.length / Math.ceil(jobs.length / this.limit)));
  }

  urlOf(jobs) {
    return jobs.length === 1
      ? jobs[0].url
      : `${this.base}?${jobs.map(({ uuid }) => `uuid=${uuid}`).join("&")}`;
  }

  async run(now) {
    this.controller = new AbortController();
    try {
      const asking = this.ask(now);
      this.plan();
      await asking;
    } finally {
      this.controller = null;
    }
    this.plan();
  }

  /**
   * The jobs to ask for now: those that are due, and those that become due before these
   * are due again, if asking early saves a request.
   */
  waiting(now) {
    const jobs = this.awake;
    const due = jobs.filter((job) => job.due <= now);
    const ahead = now + 0.75 * Math.min(...due.map((job) => job.period));
    return jobs.filter(
      (job) => job.due <= now || (!job.alone && job.due <= ahead && job.earliest <= now)
    );
  }

  /**
   * Ask once, for as many jobs as fit into one request, and pass on the answer. Those that
   * have waited longest are asked for first.
   */
  async ask(now) {
    const waiting = this.waiting(now);
    if (!waiting.length) return; // the page was hidden, or a watch has left
    const queue = [...waiting].sort((a, b) => a.due - b.due || a.earliest - b.earliest);
    const isAlone = queue[0].alone;
    const { part } = queue[0];
    const near = queue.filter((job) => !job.alone && job.part === part);
    const chosen = isAlone ? [queue[0]] : this.share(near);
    // In the same order each time, as the same jobs have the same ETag.
    const asked = waiting.filter((job) => chosen.includes(job));
    // Jobs that are asked for alone take turns with the others.
    if (isAlone) for (const job of waiting.filter(({ alone }) => alone)) job.due = now;
    const single = asked.length === 1;
    const url = this.urlOf(asked);
    // Was the last request for each of these jobs the same one?
    const { tag } = asked[0];
    const etag = tag && tag.url === url && asked.every((job) => job.tag === tag) && tag.etag;
    for (const job of asked) job.again = job.offered = false;
    this.asked = asked;
    const answer = await askForJobs(url, single, etag, this.controller);
    this.asked = [];
    const { body, size, reason, unchanged, headers } = answer;
    if (reason && reason.code === "aborted") return;
    const peers = asked.flatMap((job) => job.peers.filter(({ alone }) => alone));
    if (reason && !reason.final) {
      const isOther = (job) => !isAlone && !job.feed && !asked.includes(job);
      this.backOff([...new Set([...asked, ...peers])], this.awake.filter(isOther), answer, now);
      return;
    }
    this.failures = this.pausedUntil = 0;
    const isRefused = reason && (reason.code === "redirect" || [401, 403].includes(reason.status));
    if (reason && !single && !isRefused) {
      // An older server, or the request is too large or too long: ask for fewer jobs.
      const { limit } = this;
      this.limit = [400, 413, 414, 431].includes(reason.status) ? Math.ceil(asked.length / 2) : 1;
      if (this.limit > 1) return;
      // Perhaps only this answer was odd. A server that refuses all batches is tried ever less.
      setTimeout(() => (this.limit = limit), this.patience);
      this.patience = Math.min(2 * this.patience, MAX_PERIOD);
      return;
    }
    if (!single) this.patience = PAUSE;
    this.setClock(headers.get("JobState-Time"));
    const answered = performance.now();
    const isTold = ({ uuid }) => single || !body || own(body.jobs, uuid) !== undefined;
    const told = asked.filter(isTold);
    // Those that were left out stay due. An answer without any is not ours.
    const isShort = told.length > 0 && told.length < asked.length;
    const over = isShort ? told : asked;
    // The jobs that fill an answer are a part, asked for without the others from now on. The
    // ETag of the answer is theirs, too. Once they are much smaller, they join the others.
    if (isShort) for (const job of asked) job.part = null;
    const fills = isShort ? { size } : part && body && size < part.size / 2 ? null : part;
    const fresh = { url: this.urlOf(over), etag: headers.get("ETag") };
    for (const job of over) {
      job.alone = false;
      job.failures = 0;
      job.offered = headers.get("JobState-Stream") === "1" && !pollOnly.has(job.url);
      job.rest(job.period, answered);
      if (!unchanged) job.tag = fresh;
      job.part = fills;
    }
    if (isRefused) peers.forEach((job) => job.lose(reason));
    // Perhaps the viewer has lost a right or a login: one of them is asked.
    const isNone = body && !single && asked.every(({ uuid, data }) => data && body.jobs[uuid] === null);
    for (const job of over) {
      const data = body && (single ? body : own(body.jobs, job.uuid));
      job.peers = isNone ? asked : [];
      if (reason) job.lose(reason);
      else if (unchanged) job.confirm();
      else if (isJob(data)) job.receive(data);
      else if (data) job.lose(problem("format", 200, true));
      else {
        job.alone = true;
        job.hurry();
      }
    }
  }

  /**
   * Ask again after a pause, and tell all jobs that wait of the outage. The others go before
   * those that were asked for, and soon after a first failure: perhaps only some jobs cannot
   * be answered.
   */
  backOff(asked, others, { reason, headers }, began) {
    const now = performance.now();
    const wait = retryAfter(headers);
    this.notBefore = now + Math.max(MIN_GAP, wait);
    const period = Math.min(...[...asked, ...others].map((job) => job.period));
    const jitter = 0.5 + Math.random() / 2;
    const pauseAfter = (failures) => {
      const ceiling = Math.min(period * 2 ** failures, MAX_BACKOFF);
      // Spread out the clients that the server told the same time.
      return Math.max(period, ceiling * jitter, wait && wait + period * jitter);
    };
    const retryIn = pauseAfter(this.failures);
    const waiting = others.filter((job) => job.due <= now);
    // Jobs that cannot wait, since they are new, do not make the others wait longer.
    if (began >= this.pausedUntil) {
      this.failures += 1;
      this.pausedUntil = now + retryIn;
      for (const job of others) job.due = Math.max(job.due, this.pausedUntil);
    }
    const failures = Math.max(this.failures, ...asked.map((job) => (job.failures += 1)));
    reason.retryIn = pauseAfter(failures);
    for (const job of asked) job.rest(reason.retryIn, now);
    for (const job of asked) job.lose(reason);
    const outage = Object.assign(new Error(reason.message), reason, { retryIn });
    for (const job of waiting) job.lose(outage);
  }
}

/** Resolves to the headers of the answer, and its body, {unchanged: true} or a reason. */
async function askForJobs(url, single, etag, controller) {
  const answer = { headers: new Headers() };
  try {
    // The browser's own cache would turn a 304 into a 200 with the old body.
    const { response, text } = await send(url, etag ? { "If-None-Match": etag } : {}, controller);
    const body = attempt(() => JSON.parse(text));
    answer.headers = response.headers;
    answer.size = text.length;
    if (response.status === 304 && etag) answer.unchanged = true;
    else if (!response.ok) throw refusal(response);
    else if (single ? isJob(body) : body && body.jobs && typeof body.jobs === "object") {
      answer.body = body;
    } else throw problem("format", response.status, true);
  } catch (reason) {
    answer.reason = reason;
  }
  return answer;
}

async function askToCancel({ url }, csrf) {
  const target = new URL(url);
  target.pathname = target.pathname.replace(/\/?$/, "/cancel");
  const headers = { "X-Requested-With": "XMLHttpRequest", ...csrf };
  const { response, text } = await send(target.href, headers, new AbortController(), "POST");
  if (response.status === 202) return true;
  if (response.status === 409) return false;
  throw response.status === 400 && /CSRF/.test(text)
    ? problem("csrf", 400, true)
    : refusal(response);
}

/** Resolves to the response and its whole text, or rejects with a problem(). */
async function send(url, headers, controller, method = "GET") {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    controller.abort();
  }, REQUEST_TIMEOUT);
  try {
    const response = await fetch(url, {
      method,
      headers: { Accept: "application/json", ...headers },
      cache: "no-store",
      credentials: "include", // the caller allowed another origin explicitly
      redirect: "manual",
      signal: controller.signal,
    });
    return { response, text: await response.text() };
  } catch (error) {
    throw problem(late ? "timeout" : controller.signal.aborted ? "aborted" : "network");
  } finally {
    clearTimeout(timer);
  }
}

function refusal({ status, type }) {
  return type === "opaqueredirect"
    ? problem("redirect", 0, true)
    : problem("status", status, status < 500 && status !== 429 && status !== 408);
}

function retryAfter(headers) {
  const value = headers.get("Retry-After");
  // Compare a date with the server's clock.
  const wait = /^\d+$/.test(value)
    ? value * 1000
    : Date.parse(value) - (Date.parse(headers.get("Date")) || Date.now());
  return Math.min(Math.max(wait || 0, 0), MAX_RETRY_AFTER);
}

function isJob(data) {
  return (
    data &&
    ["working", "success", "error"].includes(data.job_state) &&
    data.job &&
    typeof data.job === "object"
  );
}

/** An object's own value: names like "constructor" must not find inherited ones. */
function own(object, name) {
  return Object.prototype.hasOwnProperty.call(object, name) ? object[name] : undefined;
}

/** How many members have which status, in the order of COUNTED; 0 for what is not a count. */
function countsOf({ counts }) {
  const all = COUNTED.map((status) => own(Object(counts), status));
  return all.map((count) => (Number.isSafeInteger(count) && count > 0 ? count : 0));
}

/**
 * Where the shares of the statuses that are OVER end on the bar, in percent. A share has a
 * least size: one failure of ten thousand would not be seen.
 */
function endsOf(counts, fraction, least) {
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const total = sum(counts);
  const shares = OVER.map((_, i) => counts[i] && Math.max(counts[i] / total, least));
  // Members that are over may weigh less than others. The rest of the fill is running ones.
  const scale = Math.min(1, fraction / sum(shares)) || 0;
  return OVER.map((_, i) => 100 * scale * sum(shares.slice(0, i + 1)));
}

/** Returns an Error with a `code`, the HTTP `status` (0: none), and `final`. */
function problem(code, status = 0, final = false) {
  const message = fill(ENGLISH[nameOf(code, status)], { status });
  return Object.assign(new Error(message), { code, status, final });
}

/** The name of the label for a problem. */
function nameOf(code, status) {
  return [status, code, "network"].find((name) => ENGLISH[name]);
}

function fill(label, values) {
  return label.replace(/\{(\w+)\}/g, (match, name) => (name in values ? values[name] : match)).trim();
}

const TYPES = {
  jobUuid: "string",
  baseUrl: "string",
  csrfToken: "string",
  csrfHeader: "string",
  update: "function",
  success: "function",
  error: "function",
  lost: "function",
};

function checkOptions(options) {
  const check = (valid, message) => {
    if (!valid) throw new TypeError(`JobState.follow: ${message}`);
  };
  check(options && typeof options === "object", "an object of options is needed");
  const { jobUuid, url, csrfToken, signal, crossOrigin } = options;
  const { pollingPeriod = DEFAULT_PERIOD } = options;
  const baseUrl = options.baseUrl || defaultBaseUrl;
  const csrfHeader = options.csrfHeader || "X-CSRF-Token";

  check((jobUuid == null) !== (url == null), "give either jobUuid or url");
  for (const [name, type] of Object.entries(TYPES)) {
    check(options[name] == null || typeof options[name] === type, `${name} must be a ${type}`);
  }
  check(jobUuid == null || /^[\w-]+$/.test(jobUuid), "jobUuid is not a uuid");
  check(
    Number.isFinite(pollingPeriod) && pollingPeriod > 0,
    "pollingPeriod must be a positive number of milliseconds"
  );
  check(maySend(csrfHeader, csrfToken || ""), "csrfHeader or csrfToken cannot be sent");
  const name = url == null ? "baseUrl" : "url";
  const address = resolve(url == null ? `${baseUrl.replace(/\/+$/, "")}/${jobUuid}` : url);
  check(address && /^https?:/.test(address.protocol), `${name} must be an http(s) URL`);
  check(
    crossOrigin || address.origin === self.origin,
    `${name} is of another origin, which needs crossOrigin: true`
  );
  return {
    place: placeOf(address, jobUuid),
    period: Math.min(Math.max(pollingPeriod, MIN_GAP), MAX_PERIOD),
    csrf: csrfToken && { [csrfHeader]: csrfToken },
    signal: signal || new AbortController().signal,
  };
}

/**
 * Where to ask for a job: at its own URL or, together with others, by its uuid at the base
 * URL. A URL that has a query, or does not look like base and uuid, stands alone.
 */
function placeOf({ origin, pathname, search }, jobUuid) {
  const url = origin + pathname + search;
  const [, path, name] = /^(.*)\/([^/]+)\/?$/.exec(pathname) || [];
  const uuid = /^[0-9a-f-]{36}$/i.test(name) ? name : jobUuid;
  return search || !uuid ? { base: url, uuid: "", url } : { base: origin + path, uuid, url };
}

/** The base of relative URLs. A `<base>` of another origin is ignored. */
function baseOfPage() {
  const base = ofDocument("baseURI");
  return new URL(base).origin === self.origin ? base : location;
}

/** A URL, or null. */
function resolve(address, base = baseOfPage()) {
  return attempt(() => new URL(address, base));
}

/** Whether a page may send a header: browsers drop the ones reserved for themselves. */
function maySend(name, value) {
  return attempt(() => new Request("data:,", { headers: { [name]: value } }).headers.has(name));
}

// The element

// The path inside the icon's ring, in a box of 20 by 20.
const ICONS = {
  queued: "M10 6v4.3l2.6 1.6",
  working: "M10 2.5A7.5 7.5 0 0 1 17.5 10",
  retrying: "M13.5 8.2A4 4 0 1 0 14 10.6M14 5.8v2.6h-2.6",
  stalled: "M10 6v4.6M10 13.8v.01",
  success: "M6.6 10.3l2.4 2.4 4.5-5",
  error: "M7.4 7.4l5.2 5.2M12.6 7.4l-5.2 5.2",
  cancelled: "M6.8 10h6.4",
  lost: "M4.9 4.9l10.2 10.2",
};

const languages = {};
const connected = new Set();

function setLabels(language, labels) {
  language = language.toLowerCase();
  languages[language] = { ...languages[language], ...labels };
  connected.forEach(refresh);
}

// Intl's objects are expensive to create, so each is kept.
const formats = {};

function format(kind, language, options, value) {
  const key = kind + language + JSON.stringify(options);
  const create = (...asked) => attempt(() => new Intl[kind](...asked));
  // Not a language, or an unsupported option: use a plainer format.
  formats[key] =
    formats[key] || create(language || [], options) || create([], options) || create();
  return formats[key].format(value);
}

/** Options for a number: some decimals, and more near 0, where those would say nothing. */
function precise(number, decimals) {
  const zeros = Math.max(0, -number.toExponential().split("e")[1]);
  return { maximumFractionDigits: Math.min(decimals + zeros, 20) };
}

/** Text from the server, without characters that could disturb the surrounding text. */
function clean(value, most = 1000) {
  const text = typeof value === "string" ? value : value == null ? "" : JSON.stringify(value);
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  // Control characters, and those that change the direction of the text.
  return cut.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, "");
}

// All changed elements are drawn together, before the browser paints. In a hidden tab that
// may never happen, so only elements in the page wait here; the others are drawn when they
// are inserted.
const changed = new Set();
const firstTexts = new WeakMap(); // by the nodes that show a metric
let planned = false;

function refresh(element) {
  if (!element.isConnected) return;
  changed.add(element);
  if (planned) return;
  planned = true;
  sheet = sheet || loadSheet().catch(() => null);
  sheet.then((loaded) => requestAnimationFrame(() => draw(loaded)));
}

function draw(loaded) {
  const elements = [...changed];
  const roots = new Map();
  changed.clear();
  planned = false;
  for (const element of elements) {
    attempt(() => {
      // Not document.querySelectorAll: it may be an element of that name.
      const root = element.closest(":root") || element.getRootNode();
      roots.set(root, roots.get(root) || []).get(root).push(element);
      element._draw(loaded);
    }, "an element cannot be drawn");
  }
  for (const [root, near] of roots) {
    for (const node of root.querySelectorAll("[data-metric]")) {
      attempt(() => {
        const id = node.dataset.job || node.getAttribute("for");
        const around = node.closest("job-state");
        const element = near.find((other) => (id ? other.id === id : other === around));
        if (!element) return;
        const value = own(Object(element.data), node.dataset.metric);
        let text = typeof value === "number" ? element._number(value, precise(value, 3)) : clean(value);
        if (value === undefined) text = firstTexts.get(node);
        else if (!firstTexts.has(node)) firstTexts.set(node, node.textContent);
        if (text !== undefined && node.textContent !== text) node.textContent = text;
      }, "an element cannot be drawn");
    }
  }
}

// Stands before the title of a page in which a job has ended unseen. The word joiner tells
// it from a bullet of the application's own, which may have written around it.
const MARK = "\u25cf\u2060\xa0";
const notified = new Set();

/** Put a mark, or nothing, before the title as the application has it by now. */
function markTitle(mark) {
  const plain = ofDocument("title").split(MARK).join("");
  Reflect.set(Document.prototype, "title", mark + plain, document);
}

function unmarkTitle() {
  if (ofDocument("hidden")) return;
  window.removeEventListener("visibilitychange", unmarkTitle, true);
  markTitle("");
}

/** Tell of the end of a job if the page is hidden, and of each only once. */
function notify({ uuid, finished_at }, text) {
  const end = uuid + finished_at;
  if (!ofDocument("hidden")) return;
  markTitle(MARK);
  window.addEventListener("visibilitychange", unmarkTitle, true);
  attempt(() => {
    if (notified.has(end) || Notification.permission !== "granted") return;
    notified.add(end);
    // Other tabs replace it.
    new Notification(text, { tag: uuid });
  });
}

/** See job-state.d.ts. */
async function askToNotify() {
  const answer = await attempt(() => Notification.requestPermission().catch(() => {}));
  return answer === "granted";
}

// One live region announces for all elements of the page.
const speaker = make("div", { role: "status" });
speaker.style.cssText = "position:fixed;clip-path:inset(50%)";
const sentences = new Map();

function prepareSpeaker() {
  const body = ofDocument("body");
  if (body && !speaker.isConnected) body.append(speaker);
}

function say(element, sentence) {
  if (!sentences.size) {
    setTimeout(() => {
      prepareSpeaker();
      const spoken = [...sentences.values()].slice(0, 5);
      speaker.replaceChildren(...spoken.flatMap((node, i) => (i ? [" ", node] : [node])));
      sentences.clear();
    }, 200);
  }
  const lang = languageOf(sentence) || element._language;
  sentences.set(element, make("span", lang ? { lang } : {}, unmarked(sentence)));
}

let sheet = null; // a promise of the text of the style sheet, if it can be loaded
const sheets = new WeakMap(); // those made of it, by document, which takes only its own

async function loadSheet() {
  const response = await fetch(sheetUrl);
  return response.ok ? response.text() : null;
}

function sheetOf(owner, loaded) {
  if (!sheets.has(owner)) {
    const made = new owner.defaultView.CSSStyleSheet();
    made.replaceSync(loaded);
    sheets.set(owner, made);
  }
  return sheets.get(owner);
}

/** Style a shadow root. A strict policy blocks a <style> there, but not a link. */
function addStyles(root, loaded) {
  const adopt = () => (root.adoptedStyleSheets = [sheetOf(root.ownerDocument, loaded)]);
  if ((loaded === null || !attempt(adopt)) && !root.querySelector("link")) {
    root.append(make("link", { rel: "stylesheet", href: sheetUrl }));
  }
}

function make(name, attributes = {}, ...children) {
  const language = /svg|circle|path/.test(name) ? "2000/svg" : "1999/xhtml";
  const node = ofDocument("createElementNS").call(document, `http://www.w3.org/${language}`, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** An element with the same name as its part, its class and its key in View.parts. */
function part(tag, name, attributes = {}, ...children) {
  return make(tag, { part: name, class: name, ...attributes }, ...children);
}

const template = part("div", "job",
  { tabindex: -1, hidden: "", role: "group", "aria-labelledby": "title" },
  part("div", "head", {},
    part("svg", "icon", { viewBox: "0 0 20 20", "aria-hidden": true },
      part("circle", "ring", { cx: 10, cy: 10, r: 7.5 }),
      part("path", "sign")
    ),
    part("span", "title", { id: "title", dir: "auto" }),
    part("span", "percent", { "aria-hidden": true }),
    part("button", "cancel", { type: "button", id: "cancel", "aria-labelledby": "cancel title" })
  ),
  part("div", "bar",
    { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-labelledby": "title" },
    part("div", "fill"),
    ...OVER.map((status) => part("div", `share-${status}`))
  ),
  part("div", "foot", {},
    make("span", {}, part("span", "status"), part("span", "details")),
    part("span", "left")
  ),
  part("div", "counts", {},
    ...COUNTED.map((status) => part("span", `count-${status}`, { dir: "auto" }))
  ),
  part("p", "message", { dir: "auto" }),
  part("p", "notice", { dir: "auto" }),
  part("a", "result"),
  part("ol", "log", { tabindex: 0 })
);

/** The shadow tree of one element. Writes only what has changed. */
class View {
  constructor(root) {
    this.parts = {};
    this.slot = make("slot");
    root.append(template.cloneNode(true), this.slot);
    for (const node of root.querySelectorAll("[part]")) {
      this.parts[node.getAttribute("part")] = node;
    }
    this.written = new Map();
  }

  /**
   * Set the text, a style property or an attribute; null removes an attribute. The language
   * of a part is that of its text.
   */
  set(name, attribute, marked) {
    const key = `${name} ${attribute}`;
    if (this.written.get(key) === marked) return;
    this.written.set(key, marked);
    const node = this.parts[name];
    const value = typeof marked === "string" ? unmarked(marked) : marked;
    if (/^text$|valuetext/.test(attribute)) this.set(name, "lang", languageOf(marked));
    if (attribute === "text") node.textContent = value;
    else if (attribute[0] === "-") node.style.setProperty(attribute, value);
    else if (value === null || value === false) node.removeAttribute(attribute);
    else node.setAttribute(attribute, value);
  }

  /** Set one attribute of several parts. */
  write(attribute, values) {
    for (const [name, value] of Object.entries(values)) this.set(name, attribute, value);
  }

  log(lines) {
    const { log } = this.parts;
    if (this.lines === lines.join("\n")) return;
    this.lines = lines.join("\n");
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    log.textContent = "";
    log.append(...lines.map((line) => make("li", { dir: "auto" }, line)));
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

// The units of durations: the seconds in each, and from how many seconds the next is used.
const UNITS = [
  { unit: "second", size: 1, end: 59.5 },
  { unit: "minute", size: 60, end: 3570 },
  { unit: "hour", size: 3600, end: 86400 },
  { unit: "day", size: 86400, end: Infinity },
];

/** The unit in which a duration is shown. */
const unitOf = (seconds) => UNITS.find(({ end }) => seconds < end) || UNITS[3];

// The steps in which a wait is counted, and the seconds up to which each is used.
const STEPS = [
  { step: 1, end: 60 },
  { step: 60, end: 3600 },
  { step: 360, end: 86400 },
  { step: 8640, end: Infinity },
];

const PROPERTIES = ["src", "cancellable", "log"]; // each reflects its attribute
const ASKING = ["src", "period", "csrf-token", "csrf-header", "cross-origin", "notify"];

class JobStateElement extends HTMLElement {
  static get observedAttributes() {
    return [
      ...ASKING, "cancellable", "log", "lang", "compact",
      ...Object.keys(ENGLISH).map((name) => `label-${name}`),
    ];
  }

  constructor() {
    super();
    this._view = new View(this.attachShadow({ mode: "open" }));
    this._poller = null;
    this._forget();
    this._stale = true; // the poller does not match the attributes (yet)
    this._view.parts.cancel.addEventListener("click", () => this.cancel().catch(() => {}));
    this._view.slot.addEventListener("slotchange", () => refresh(this));
  }

  connectedCallback() {
    for (const name of [...PROPERTIES, "period", "data"]) {
      // Set before the script was loaded.
      const value = own(this, name);
      delete this[name];
      if (value !== undefined) this[name] = value;
    }
    connected.add(this);
    prepareSpeaker();
    this._follow();
    refresh(this);
  }

  disconnectedCallback() {
    // An element that was moved is back in the page by then.
    Promise.resolve().then(() => {
      if (this.isConnected) return;
      connected.delete(this);
      changed.delete(this);
      clearTimeout(this._timer);
      if (this._poller) this._stop();
    });
  }

  /** Another document empties the list of its style sheets. */
  adoptedCallback() {
    this._styled = false;
  }

  attributeChangedCallback(name, old, value) {
    if (ASKING.includes(name) && (old !== value || this.state === "lost")) {
      if (name === "src") this._forget();
      this._stop();
      // Handle attributes that change together as one change.
      Promise.resolve().then(() => this._follow());
    }
    refresh(this);
  }

  get period() {
    const period = Number(this.getAttribute("period"));
    return period > 0 && period < Infinity ? period : DEFAULT_PERIOD;
  }

  set period(period) {
    this.setAttribute("period", period);
  }

  /** The last data, or null. Setting it shows it. */
  get data() {
    return this._data;
  }

  set data(data) {
    this._data = isJob(data) ? data : null;
    this._reason = null;
    refresh(this);
  }

  get state() {
    if (this._reason) return this._reason.final ? "lost" : "reconnecting";
    return this._data ? String(this._data.job.status) : "loading";
  }

  async cancel() {
    if (this._asking || !this._poller) return false;
    const asking = (this._asking = {});
    this._complaint = "";
    refresh(this);
    try {
      return await this._poller.cancel();
    } catch (reason) {
      // Not if it concerns an earlier job, or no longer matters.
      if (asking === this._asking) {
        this._asking = null;
        this._complaint = this._label("cancel-failed", { reason: this._explain(reason) });
        say(this, this._complaint);
      }
      throw reason;
    } finally {
      refresh(this);
    }
  }

  _follow() {
    if (!this._stale || this._ended || !this.isConnected || !this.src) return;
    this._stale = false;
    const lose = (reason) => {
      this._reason = reason;
      this._tell("lost", reason);
    };
    const notifies = this.hasAttribute("notify");
    let isNews = false; // the page had shown the job before its end
    const end = (data) => {
      const { job } = data;
      this._ended = true;
      this._poller = null;
      this._tell(data.job_state, data);
      if (!notifies || !isNews) return;
      // Some templates repeat the name of an attribute without a value.
      const text = this.getAttribute("notify").trim().replace(/^(notify|true)$/i, "");
      const usual = () => unmarked(`${this._title(job)}: ${this._word(job.status)}`);
      attempt(() => notify(job, (data.job_state === "success" && text) || usual()));
    };
    try {
      this._poller = follow({
        url: this.src,
        pollingPeriod: this.period,
        csrfToken: this.getAttribute("csrf-token"),
        csrfHeader: this.getAttribute("csrf-header"),
        whileHidden: notifies,
        crossOrigin: this.hasAttribute("cross-origin"),
        update: (data) => {
          isNews = !!this.data && this.data.job_state === "working";
          this.data = data;
          if (data.job_state !== "working" || data.job.status === "cancelling") {
            this._asking = null;
            this._complaint = "";
          }
          this._tell("update", data);
        },
        success: end,
        error: end,
        lost: lose,
      });
    } catch (error) {
      console.error(error);
      lose(problem(/csrf/.test(error) ? "csrf" : "address", 0, true));
    }
  }

  _stop() {
    this._stale = true;
    if (this._poller) this._poller.stop();
    this._poller = null;
  }

  _forget() {
    this._data = null;
    this.transport = null;
    this._reason = null; // why the job cannot be seen
    this._ended = false; // its end was told
    this._asking = null; // the cancel that is on its way
    this._complaint = ""; // why it could not be cancelled
    this._quarter = -1; // the last one announced
  }

  _tell(name, detail) {
    if (this._poller) this.transport = this._poller.transport;
    refresh(this);
    this.dispatchEvent(
      new CustomEvent(`job-state:${name}`, { bubbles: true, composed: true, detail })
    );
  }

  get _language() {
    const element = this.closest("[lang]") || ofDocument("documentElement");
    // Not `element.lang`: in a form that may be a field of that name.
    return element.getAttribute("lang") || "";
  }

  _label(name, values = {}) {
    const language = this._language.toLowerCase();
    const attribute = this.getAttribute(`label-${name}`);
    const labels = [
      attribute !== null && { [name]: attribute },
      languages[language],
      languages[language.split("-")[0]],
      window.JobState.labels,
      ENGLISH,
    ].find((some) => some && name in some);
    const label = String(labels[name]);
    const hasWords = /[a-z]/i.test(label.replace(/\{\w+\}/g, ""));
    const isForeign = labels === ENGLISH && hasWords && !/^en\b/.test(language);
    return (isForeign ? IN_ENGLISH : "") + fill(label, values);
  }

  _word(state) {
    return this._label(own(ENGLISH, state) ? state : "working");
  }

  _title(job) {
    const given = this.getAttribute("label-job") || job.title || this.textContent.trim();
    return clean(given || this._label("job"), 200);
  }

  _number(value, options = { maximumFractionDigits: 1 }) {
    return format("NumberFormat", this._language, options, value);
  }

  /**
   * Below a minute, an estimate shows steps of five seconds. With 0, it is exact. A duration in
   * the unit `known` does not name it.
   */
  _duration(seconds, step = 5, known = null) {
    let shown = Math.max(0, seconds);
    if (step && seconds < 60) {
      shown = Math.max(1, seconds < 10 ? seconds : Math.ceil(seconds / step) * step);
    }
    const { unit, size } = unitOf(shown);
    const maximumFractionDigits = size > 60 || (!step && shown < 10) ? 1 : 0;
    const named = unit === known ? {} : { style: "unit", unit };
    return this._number(shown / size, { ...named, maximumFractionDigits });
  }

  _time(time, now) {
    const options = { timeStyle: time - now < 2 * MINUTE ? "medium" : "short" };
    if (time.toDateString() !== new Date(now).toDateString()) options.dateStyle = "medium";
    return format("DateTimeFormat", this._language, options, time).replace(/ /g, "\u00a0");
  }

  /**
   * When a job that waits is due or, once it is queued, for how long it has waited, and the
   * milliseconds until that changes.
   */
  _wait({ due_at, updated_at }, state) {
    const isQueued = state === "queued";
    if (!isQueued && state !== "retrying") return {};
    const now = this._poller ? this._poller.now : Date.now();
    const due = new Date(due_at);
    if (due > now) {
      const time = this._time(due, now);
      const next = Math.min(due - now, MINUTE);
      return { due: this._label(isQueued ? "due" : "retry", { time }), next };
    }
    const waited = (now - Math.max(due, Date.parse(updated_at))) / 1000;
    if (!isQueued || !(waited >= 0)) return {};
    // Not rounded up, unlike an estimate.
    const { step } = STEPS.find(({ end }) => waited < end);
    const next = 1000 * (step - (waited % step));
    if (waited < 1) return { next };
    const time = this._duration(waited - (waited % step), 1);
    return { waiting: this._label("waiting", { time }), next };
  }

  /**
   * How long such jobs usually run, or that a job has run for longer, and the milliseconds
   * until that changes.
   */
  _usually({ usual, started_at }) {
    const { low, high, p95 } = usual || {};
    const end = Date.parse(started_at) + 1000 * p95;
    if (![low, high, end].every(Number.isFinite)) return {};
    const next = Math.min(end - (this._poller ? this._poller.now : Date.now()), MAX_PERIOD);
    if (next <= 0) return { usually: this._label("longer") };
    const [from, to] = [low, high].map((seconds) => this._duration(seconds, 0));
    const bare = this._duration(low, 0, unitOf(high).unit);
    const time = from === to ? to : this._label("range", { low: bare, high: to });
    return { usually: this._label("usual", { time }), next };
  }

  /** The details after the status: how much of how much, how fast. */
  _details(job, { done, total, unit, fraction }, state, due, failures) {
    const details = [];
    if (job.attempt > 1 || (state === "retrying" && job.attempt)) {
      details.push(this._label("attempt", { number: this._number(job.attempt) }));
    }
    if (due && state !== "queued") details.push(due);
    const isBatch = !!job.counts;
    const members = isBatch && unit === "jobs" && this._label("members");
    let amount = "";
    if (Number.isFinite(done) && (total || done || unit)) {
      // Enough decimals to tell the amount from the total, and the total from 0. Rounding
      // errors of floats do not count.
      const rest = total - done;
      const options = precise(rest > total * 1e-9 ? rest : total || done, 1);
      amount = this._label(total == null ? "amount" : "amount-of", {
        done: this._number(done, options),
        total: this._number(total, options),
        // Isolated, so that text of another direction does not reorder the numbers.
        unit: unit && !(isBatch && this.hasAttribute("compact")) ? `\u2068${clean(members || unit, 30)}\u2069` : "",
      });
    }
    for (const count of failures) {
      amount = amount ? this._label("amount-count", { amount, count }) : count;
    }
    const name = job.phase && clean(job.phase.name, 60);
    const phase = name && `\u2068${name}\u2069`;
    if (phase) amount = amount ? this._label("phase", { phase, amount }) : phase;
    if (amount) details.push(amount);
    const seconds = (to) => (new Date(to) - new Date(job.started_at)) / 1000;
    const elapsed = seconds(job.updated_at);
    const rate = done / elapsed;
    // A loop of a part of the job has begun later.
    const isWhole = !total || fraction == null || Math.abs(fraction - Math.min(done / total, 1)) < 1e-6;
    // A batch may have been over in the meantime.
    const hasRate = state === "working" && !isBatch && !job.quiet_since && rate > 0;
    if (hasRate && elapsed >= 1 && !phase && isWhole) {
      const slow = rate < 1;
      const amount = this._number(slow ? rate * 60 : rate, { maximumSignificantDigits: 2 });
      details.push(this._label(slow ? "rate-slow" : "rate", { amount }));
    }
    if (state === "success" && job.started_at) {
      details.push(this._label("took", { time: this._duration(seconds(job.finished_at), 0) }));
    }
    return details;
  }

  _explain({ code, status }) {
    return this._label(nameOf(code, status), { status });
  }

  _notice(job, state) {
    if (state === "lost") return this._explain(this._reason);
    if (state !== "error" && state !== "cancelled") return this._complaint;
    const reason = clean(job.error && job.error.message);
    // It would only repeat the word.
    const usual = state === "cancelled" && unmarked(this._label("reason-cancelled"));
    return reason === usual ? "" : reason;
  }

  _draw(loaded) {
    if (!this._styled) addStyles(this.shadowRoot, loaded);
    this._styled = true;
    const { _view: view, state } = this;
    const { parts } = view;
    const job = this._data ? this._data.job : {};
    clearTimeout(this._timer);
    const isReckoned = state !== "working" || (job.progress && job.progress.eta != null);
    const { due, waiting, usually = "", next } = isReckoned
      ? this._wait(job, state)
      : this._usually(job);
    const word = (state === "queued" && due) || this._word(state);
    const answered = this._data || state === "lost";
    const progress = job.progress || {};
    const isOver = [...OVER, "lost"].includes(state);
    const known = state === "success" ? 1 : progress.fraction;
    const fraction = Number.isFinite(known) ? Math.min(Math.max(known, 0), 1) : null;
    const unknown =
      ["working", "cancelling"].includes(state) && fraction === null ? "indeterminate" : "";
    // Round down, so that 100 % means done. But 0.29 * 100 is 28.999999999999996.
    const hundredths = fraction === null ? null : Math.floor(fraction * 100 + 1e-9);
    const percent = fraction === null ? "" : this._number(hundredths / 100, { style: "percent" });

    if (this.getAttribute("state") !== state) this.setAttribute("state", state);
    // Keep the content that the server rendered until the first answer, and for good if it
    // shows metrics.
    view.slot.hidden = answered && !this.querySelector("[data-metric]");
    // Animating more elements than this would keep the browser busy.
    const lively = connected.size > 30 ? "" : "lively";
    const counts = countsOf(job);
    const texts = counts.map((count, i) =>
      count ? this._label(`count-${COUNTED[i]}`, { number: this._number(count) }) : "",
    );
    const isBatch = texts.some(Boolean);
    const failures = texts.slice(1, OVER.length).filter(Boolean);
    const details = this._details(job, progress, state, due, failures);
    const left = state === "working" && progress.eta > 0 && progress.eta < 1e8
      ? this._label("left", { time: this._duration(progress.eta) })
      : usually;
    const lines = this.log && Array.isArray(job.log) ? job.log : [];
    const { url } = job.result || {};
    const link = state === "success" && /^https?:\/\//i.test(url) ? url : null;
    const cancellable = this.cancellable && job.cancellable && state !== "cancelling" && !isOver;
    view.write("text", {
      title: this._title(job),
      percent,
      status: waiting || word, // a screen reader may read each change of the bar's text
      details: ["", ...details].join(" · "),
      left,
      // What a job said last is about work that goes on, unless it has succeeded.
      message: isOver && state !== "success" ? "" : clean(job.message),
      notice: this._notice(job, state),
      cancel: this._label(this._asking ? "cancelling" : "cancel"),
      result: this._label("result"),
    });
    const hidden = {
      job: !answered && this.textContent.trim() !== "",
      log: !lines.length,
      bar: isOver && fraction === null,
      counts: !isBatch,
      cancel: !cancellable,
      result: !link,
    };
    const { activeElement } = this.shadowRoot;
    if (activeElement && hidden[activeElement.className]) parts.job.focus();
    view.write("hidden", hidden);
    view.set("result", "href", link);
    view.set("job", "class", `job ${state} ${lively} ${unknown} ${isBatch && fraction !== null ? "batch" : ""}`);
    texts.forEach((text, i) => view.set(`count-${COUNTED[i]}`, "text", text));
    endsOf(counts, fraction, this.hasAttribute("compact") ? 0.05 : 0.015).forEach((end, i) =>
      view.set("bar", `--_${OVER[i]}-end`, `${end}%`),
    );
    view.set("sign", "d", own(ICONS, state) || ICONS.working);
    view.set("bar", "--_done", `${100 * (fraction || 0)}%`);
    view.set("bar", "aria-valuenow", hundredths);
    const spoken = [isOver || !percent ? word : percent, ...details, left];
    view.set("bar", "aria-valuetext", spoken.filter(Boolean).join(", "));
    view.set("cancel", "aria-disabled", !!this._asking);
    view.set("log", "aria-label", this._label("log"));
    view.log(lines.slice(-20).map((line) => clean(line)));
    if (next) this._timer = setTimeout(refresh, Math.max(next, MIN_GAP), this);
    if (answered) this._announce(job, { state, isOver, word, percent, fraction, failures });
  }

  /** Announce the start, each quarter and the end. */
  _announce(job, { state, isOver, word, percent, fraction, failures }) {
    const before = this._quarter;
    const now = isOver ? 5 : Math.floor(fraction * 4);
    // Progress may fall back within an attempt. The end (5) is not progress.
    this._quarter = Math.max(now, this._attempt === job.attempt ? before % 5 : now);
    this._attempt = job.attempt;
    // Do not announce a job that had ended before the page was loaded.
    if (now <= before || (before < 0 && isOver && state !== "lost")) return;
    let text = before < 0 ? word : percent;
    if (isOver) {
      const end = state === "lost" ? word : [word, ...failures].join(", ");
      text = `${end}. ${this._notice(job, state)}`;
    }
    say(this, `${this._title(job)}: ${text}`.trim());
  }
}

for (const name of PROPERTIES) {
  Object.defineProperty(JobStateElement.prototype, name, {
    get() {
      return name === "src" ? this.getAttribute(name) || "" : this.hasAttribute(name);
    },
    set(value) {
      if (value == null || value === false) this.removeAttribute(name);
      else this.setAttribute(name, value === true ? "" : value);
    },
  });
}

// A page may load this script twice, or its module, too. The elements belong to the first.
if (!customElements.get("job-state")) {
  const startPolling = follow; // as the function was called before it streamed
  window.JobState = { follow, startPolling, askToNotify, labels: {}, setLabels, JobStateElement };
  customElements.define("job-state", JobStateElement);
}
})();
