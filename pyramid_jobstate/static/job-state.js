/*!
 * job-state.js: the browser side of pyramid_jobstate.
 *
 *   <job-state src="/job_state/…/"></job-state>
 *   JobState.startPolling({jobUuid, update, success, error, lost})
 *
 * A classic script without dependencies that defines window.JobState, the element
 * and nothing else. job-state.d.ts beside this file documents every option, callback,
 * attribute and event.
 */
(() => {
  "use strict";

  // All times are milliseconds.
  const DEFAULT_PERIOD = 1000;
  const MIN_GAP = 50; // between a job's answer and the next request, whatever happens
  const GATHER = 10; // for the other jobs of the page to join the first request
  const MAX_BACKOFF = 30 * 1000;
  const MAX_RETRY_AFTER = 5 * 60 * 1000;
  const REQUEST_TIMEOUT = 30 * 1000;
  const MAX_TIMER = 2 ** 31 - 1; // a longer setTimeout fires at once

  const MAX_BATCH = 100; // jobs in one request
  const TOO_LARGE = [400, 413, 414, 431]; // what servers say to too many or too long

  const JOB_PATH =
    /^(.*)\/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\/?$/i;

  // document.currentScript is set only while the script is being loaded.
  const ownScript = document.currentScript;
  const defaultBaseUrl = (ownScript && ownScript.dataset.baseUrl) || "/job_state";

  /** Follow one job. See job-state.d.ts. */
  function startPolling(options) {
    const { place, period, callbacks, csrfToken, signal } = checkOptions(options);
    let leave = null;
    const stop = () => watch.end("stopped");
    const watch = new Watch(callbacks, period, () => {
      if (leave) leave();
      if (signal) signal.removeEventListener("abort", stop);
    });
    if (signal && signal.aborted) {
      stop();
    } else {
      if (signal) signal.addEventListener("abort", stop);
      leave = Channel.follow(place, watch);
    }
    return {
      stop,
      done: watch.done,
      async cancel() {
        const accepted = await askToCancel(place, csrfToken);
        Channel.refresh(place);
        return accepted;
      },
    };
  }

  /**
   * What one caller wants to know of one job: its callbacks, the last data, and how
   * it ended. Knows nothing of requests and timers; `release` tells those it is over.
   */
  class Watch {
    constructor(callbacks, period, release) {
      this.callbacks = callbacks;
      this.period = period;
      this.release = release;
      this.data = null;
      this.outage = false;
      this.ended = false;
      this.done = new Promise((resolve) => {
        this.resolve = resolve;
      });
    }

    receive(data) {
      this.data = data;
      this.outage = false;
      this.call("update", data);
      if (data.job_state !== "working") this.end(data.job_state);
    }

    lose(reason) {
      if (reason.final) {
        this.end("lost", reason);
      } else if (!this.outage) {
        this.outage = true;
        this.call("lost", reason);
      }
    }

    end(outcome, reason = null) {
      if (this.ended) return;
      this.ended = true;
      this.release();
      if (outcome === "lost") {
        // Nobody may be left to wonder why the page stands still.
        if (!this.callbacks.lost) console.warn(`JobState: ${reason.message}`);
        this.call("lost", reason);
      } else if (outcome !== "stopped") {
        this.call(outcome, this.data);
      }
      this.resolve({ outcome, data: this.data, reason });
    }

    call(name, argument) {
      const callback = this.callbacks[name];
      if (!callback) return;
      try {
        callback(argument);
      } catch (error) {
        console.error(`JobState: the callback "${name}" threw`, error);
      }
    }
  }

  /** One job: who follows it, its last data, and when it is to be asked for. */
  class Job {
    constructor({ uuid, url }) {
      this.uuid = uuid;
      this.url = url;
      this.watches = new Set();
      this.data = null;
      this.tag = null; // of the answer that held the data
      this.due = 0;
      this.earliest = 0;
      this.again = false; // what is on its way is too old to count
    }

    get period() {
      return Math.min(...[...this.watches].map((watch) => watch.period));
    }

    /** Ask as soon as may be. */
    hurry(gather = 0) {
      this.due = Math.min(this.due, Math.max(this.earliest, performance.now() + gather));
    }

    /** Ask after a pause, or at once if somebody said so meanwhile. */
    rest(pause) {
      const now = performance.now();
      this.earliest = now + MIN_GAP;
      this.due = this.again ? this.earliest : now + pause;
    }

    receive(data) {
      this.data = data;
      for (const watch of [...this.watches]) watch.receive(data);
    }

    /** The last data are still true: news for who has none, or was told of an outage. */
    confirm() {
      for (const watch of [...this.watches]) {
        if (watch.outage || !watch.data) watch.receive(this.data);
      }
    }

    lose(reason) {
      for (const watch of [...this.watches]) watch.lose(reason);
    }
  }

  const channels = new Map();

  /**
   * All jobs that are followed below one base URL. They share the requests, of which
   * one is on its way at a time. A job may be asked for sooner than its period says,
   * if that spares it a request of its own, but never later.
   */
  class Channel {
    /** Returns the function that leaves. */
    static follow(place, watch) {
      const { key } = place;
      if (!channels.has(key)) channels.set(key, new Channel(place));
      const channel = channels.get(key);
      if (!channel.jobs.has(place.uuid)) channel.jobs.set(place.uuid, new Job(place));
      const job = channel.jobs.get(place.uuid);
      job.due = job.watches.size ? job.due : Infinity;
      job.watches.add(watch);
      job.hurry(GATHER);
      channel.schedule.plan();
      return () => channel.leave(job, watch);
    }

    static refresh({ key, uuid }) {
      const channel = channels.get(key);
      const job = channel && channel.jobs.get(uuid);
      if (!job) return;
      job.again = true;
      job.hurry();
      channel.schedule.plan();
    }

    constructor({ key, base, credentials }) {
      this.key = key;
      this.base = base;
      this.credentials = credentials;
      this.jobs = new Map();
      this.asked = []; // the jobs of the request in flight
      this.limit = MAX_BATCH;
      this.failures = 0;
      this.notBefore = 0;
      this.schedule = new Schedule(this);
    }

    leave(job, watch) {
      job.watches.delete(watch);
      if (job.watches.size) return;
      this.jobs.delete(job.uuid);
      if (!this.jobs.size) {
        channels.delete(this.key);
        this.schedule.stop();
      } else if (this.asked.every(({ watches }) => !watches.size)) {
        this.schedule.interrupt();
      }
    }

    hurry() {
      for (const job of this.jobs.values()) job.hurry();
    }

    /** When to ask next. */
    due() {
      return Math.max(this.notBefore, Math.min(...[...this.jobs.values()].map((j) => j.due)));
    }

    /**
     * The jobs to ask for now: those that are due, and those that would be before these
     * are again.
     */
    waiting(now) {
      const jobs = [...this.jobs.values()];
      const due = jobs.filter((job) => job.due <= now);
      const ahead = now + 0.75 * Math.min(...due.map((job) => job.period));
      return jobs.filter((job) => job.due <= now || (job.due <= ahead && job.earliest <= now));
    }

    /** Ask once, for as many jobs as one request takes, and pass on the answer. */
    async ask(now, controller) {
      const waiting = this.waiting(now);
      const requests = Math.ceil(waiting.length / this.limit);
      const asked = waiting.slice(0, Math.ceil(waiting.length / requests));
      const single = asked.length === 1;
      const url = single
        ? asked[0].url
        : `${this.base}?${asked.map(({ uuid }) => `uuid=${uuid}`).join("&")}`;
      // Is this what was asked last for each of them?
      const last = asked[0].tag;
      const tag = last && last.url === url && asked.every((job) => job.tag === last) && last.etag;
      for (const job of asked) job.again = false;
      this.asked = asked;
      const answer = await askForJobs(url, single, tag, this.credentials, controller);
      this.asked = [];
      const { reason } = answer;
      if (reason && reason.code === "aborted") return;
      if (reason && !reason.final) {
        this.backOff(waiting, answer);
        return;
      }
      if (reason && !single && reason.status !== 401) {
        // An older server, a lower limit, a longer path than it takes: ask for fewer.
        this.limit = TOO_LARGE.includes(reason.status) ? Math.ceil(asked.length / 2) : 1;
        return;
      }
      this.failures = 0;
      const fresh = { url, etag: answer.etag };
      for (const job of asked) {
        job.rest(job.period);
        if (!answer.unchanged) job.tag = fresh;
      }
      for (const job of asked) {
        if (reason) {
          job.lose(reason);
        } else if (answer.unchanged) {
          job.confirm();
        } else {
          this.deliver(job, single ? answer.body : own(answer.body.jobs, job.uuid));
        }
      }
    }

    deliver(job, data) {
      if (isJob(data)) {
        job.receive(data);
      } else {
        job.lose(final(data == null ? problem("status", 404) : problem("format", 200)));
      }
    }

    backOff(waiting, { reason, retryAfter = 0 }) {
      const period = Math.min(...waiting.map((job) => job.period));
      this.failures += 1;
      this.notBefore = performance.now() + Math.max(MIN_GAP, retryAfter);
      const ceiling = Math.min(period * 2 ** this.failures, MAX_BACKOFF);
      const jitter = 0.5 + Math.random() / 2;
      reason.retryIn = Math.max(
        period,
        ceiling * jitter,
        // Everybody was told the same time: do not all come back at it.
        retryAfter && retryAfter + period * jitter
      );
      for (const job of waiting) job.rest(reason.retryIn);
      for (const job of waiting) job.lose(reason);
    }
  }

  const WAKING = [
    [document, "visibilitychange"],
    [window, "online"],
    [window, "pageshow"],
    [window, "pagehide"],
  ];

  /** Calls `channel.ask(now, controller)` when it is due and the page is looked at. */
  class Schedule {
    constructor(channel) {
      this.channel = channel;
      this.timer = null;
      this.controller = null; // of the request in flight
      this.away = false; // left, perhaps into the back/forward cache
      this.stopped = false;
      for (const [target, type] of WAKING) target.addEventListener(type, this);
    }

    stop() {
      this.stopped = true;
      clearTimeout(this.timer);
      this.interrupt();
      for (const [target, type] of WAKING) target.removeEventListener(type, this);
    }

    handleEvent({ type }) {
      if (type === "pagehide") {
        // A browser that leaves a page cuts its requests off, which is no outage.
        this.away = true;
        clearTimeout(this.timer);
        this.interrupt();
      } else {
        if (type === "pageshow") this.away = false;
        this.channel.hurry();
        this.plan();
      }
    }

    interrupt() {
      if (this.controller) this.controller.abort();
    }

    plan() {
      clearTimeout(this.timer);
      if (this.controller || this.stopped || this.away || document.hidden) return;
      const due = this.channel.due();
      const wait = due - performance.now();
      if (wait > 0) {
        this.timer = setTimeout(() => this.run(due), Math.min(wait, MAX_TIMER));
      } else {
        this.run(performance.now());
      }
    }

    async run(now) {
      this.controller = new AbortController();
      await this.channel.ask(now, this.controller);
      this.controller = null;
      this.plan();
    }
  }

  /** Resolves to {body, etag}, {unchanged: true} or {reason, retryAfter}. */
  async function askForJobs(url, single, etag, credentials, controller) {
    const headers = { Accept: "application/json" };
    // The browser's own cache would turn a 304 into a 200 with the old body.
    if (etag) headers["If-None-Match"] = etag;
    let response;
    let text;
    try {
      ({ response, text } = await send(url, { headers, credentials }, controller));
    } catch (reason) {
      return { reason };
    }
    if (response.status === 304 && etag) return { unchanged: true };
    if (!response.ok) {
      return { reason: refusal(response), retryAfter: retryAfter(response.headers) };
    }
    const body = parse(text);
    if (single ? isJob(body) : body && body.jobs && typeof body.jobs === "object") {
      return { body, etag: response.headers.get("ETag") };
    }
    return { reason: final(problem("format", response.status)) };
  }

  async function askToCancel({ url, credentials }, csrfToken) {
    const target = new URL(url);
    target.pathname = target.pathname.replace(/\/?$/, "/cancel");
    const headers = { Accept: "application/json", "X-Requested-With": "XMLHttpRequest" };
    if (csrfToken) headers["X-CSRF-Token"] = csrfToken;
    const init = { method: "POST", headers, credentials };
    const { response } = await send(target.href, init, new AbortController());
    if (response.status === 202) return true;
    if (response.status === 409) return false;
    throw problem(isRedirect(response) ? "redirect" : "status", response.status);
  }

  /** Resolves to the response and its whole text, or rejects with a problem(). */
  async function send(url, init, controller) {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      controller.abort();
    }, REQUEST_TIMEOUT);
    try {
      const response = await fetch(url, {
        ...init,
        cache: "no-store",
        redirect: "manual",
        signal: controller.signal,
      });
      return { response, text: await response.text() };
    } catch (error) {
      if (late) throw problem("timeout", 0);
      throw problem(controller.signal.aborted ? "aborted" : "network", 0);
    } finally {
      clearTimeout(timer);
    }
  }

  function refusal(response) {
    const { status } = response;
    if (isRedirect(response)) return final(problem("redirect", 0));
    const reason = problem("status", status);
    const passing = status >= 500 || status === 429 || status === 408;
    return passing ? reason : final(reason);
  }

  function isRedirect(response) {
    return response.type === "opaqueredirect";
  }

  function retryAfter(headers) {
    const value = headers.get("Retry-After") || "";
    // A date is the server's, and so is the clock to read it by.
    const wait = /^\d+$/.test(value)
      ? value * 1000
      : Date.parse(value) - (Date.parse(headers.get("Date")) || Date.now());
    return Math.min(Math.max(wait || 0, 0), MAX_RETRY_AFTER);
  }

  function parse(text) {
    try {
      return JSON.parse(text);
    } catch (error) {
      return null;
    }
  }

  function isJob(data) {
    return Boolean(
      data &&
        ["working", "success", "error"].includes(data.job_state) &&
        data.job &&
        typeof data.job === "object"
    );
  }

  /** A value that came with the object: names like "constructor" find nothing else. */
  function own(object, name) {
    return Object.prototype.hasOwnProperty.call(object, name) ? object[name] : undefined;
  }

  /** An Error with a `code`, the HTTP `status` (0: none), and whether it is `final`. */
  function problem(code, status) {
    const words = {
      401: "not signed in",
      403: "not allowed",
      404: "no such job, or no longer",
      410: "the job is gone",
      429: "too many requests",
    };
    const messages = {
      aborted: "The request was aborted.",
      format: "The server's answer is not the state of a job.",
      network: "The server cannot be reached.",
      redirect: "The server answered with a redirect, perhaps to a login page.",
      status: `The server answered ${status}${words[status] ? `: ${words[status]}` : ""}.`,
      timeout: `The server did not answer within ${REQUEST_TIMEOUT / 1000} seconds.`,
    };
    return Object.assign(new Error(messages[code]), { code, status, final: false });
  }

  function final(reason) {
    reason.final = true;
    return reason;
  }

  function checkOptions(options) {
    const check = (valid, message) => {
      if (!valid) throw new TypeError(`JobState.startPolling: ${message}`);
    };
    check(options && typeof options === "object", "an object of options is needed");
    const { jobUuid, url, baseUrl = defaultBaseUrl, csrfToken, signal } = options;
    const crossOrigin = Boolean(options.crossOrigin);
    const { pollingPeriod = DEFAULT_PERIOD, update, success, error, lost } = options;
    const callbacks = { update, success, error, lost };

    check((jobUuid == null) !== (url == null), "give either jobUuid or url");
    check(
      jobUuid == null || (typeof jobUuid === "string" && /^[\w-]+$/.test(jobUuid)),
      "jobUuid must be the uuid of a job, as a string"
    );
    check(typeof baseUrl === "string", "baseUrl must be a string");
    check(
      Number.isFinite(pollingPeriod) && pollingPeriod > 0,
      "pollingPeriod must be a positive number of milliseconds"
    );
    for (const name of Object.keys(callbacks)) {
      const callback = callbacks[name];
      check(callback == null || typeof callback === "function", `${name} must be a function`);
    }
    check(csrfToken == null || typeof csrfToken === "string", "csrfToken must be a string");
    check(
      signal == null || typeof signal.addEventListener === "function",
      "signal must be an AbortSignal"
    );
    const name = url == null ? "baseUrl" : "url";
    const address = resolve(
      url == null ? `${baseUrl.replace(/\/+$/, "")}/${jobUuid}` : url
    );
    check(address, `${name} is no http(s) URL`);
    check(
      crossOrigin || address.origin === self.origin,
      `${name} is of another origin, which needs crossOrigin: true`
    );
    return {
      place: placeOf(address, jobUuid, crossOrigin ? "include" : "same-origin"),
      period: Math.min(Math.max(pollingPeriod, MIN_GAP), MAX_TIMER),
      callbacks,
      csrfToken,
      signal,
    };
  }

  /**
   * Where a job is asked for: by its own URL, and with others by its uuid at its base.
   * A URL that does not look like base and uuid, or has a query, stands alone.
   */
  function placeOf({ href, origin, pathname, search }, jobUuid, credentials) {
    const url = href.replace(/#.*/, "");
    const [, path, uuid] = JOB_PATH.exec(pathname) || [];
    const base = origin + (jobUuid ? pathname.replace(/\/[^/]*$/, "") : path);
    return search || !(jobUuid || uuid)
      ? { key: `${credentials} ${url}`, base: url, uuid: "", url, credentials }
      : { key: `${credentials} ${base}`, base, uuid: jobUuid || uuid, url, credentials };
  }

  /** An http(s) URL, or null. */
  function resolve(address) {
    try {
      const url = new URL(address, document.baseURI);
      return /^https?:$/.test(url.protocol) ? url : null;
    } catch (error) {
      return null;
    }
  }

  // The element

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
    "signed-out": "You are not signed in.",
    forbidden: "You may not see this job.",
    gone: "There is no such job, or no longer.",
    unreadable: "The server’s answer is not the state of a job.",
    due: "starts at {time}",
    retry: "next try at {time}",
    attempt: "attempt {number}",
    amount: "{done} {unit}",
    "amount-of": "{done} of {total} {unit}",
    rate: "{amount}/s",
    "rate-slow": "{amount}/min",
    left: "about {time} left",
    took: "took {time}",
    cancel: "Cancel",
    "cancel-failed": "Not cancelled: {reason}",
    log: "Log",
  };

  const REASONS = { 0: "unreadable", 401: "signed-out", 403: "forbidden", 404: "gone", 410: "gone" };

  // What is drawn over the ring of the icon, in a box of 20 by 20.
  const ICONS = {
    queued: "M10 6v4.3l2.6 1.6",
    working: "M10 2.5A7.5 7.5 0 0 1 17.5 10",
    retrying: "M13.5 8.2A4 4 0 1 0 14 10.6M14 5.8v2.6h-2.6",
    stalled: "M10 6v4.6M10 13.8v.01",
    cancelling: "M7.4 7.4l5.2 5.2M12.6 7.4l-5.2 5.2",
    success: "M6.6 10.3l2.4 2.4 4.5-5",
    error: "M7.4 7.4l5.2 5.2M12.6 7.4l-5.2 5.2",
    cancelled: "M6.8 10h6.4",
    reconnecting: "M10 2.5A7.5 7.5 0 0 1 17.5 10",
    lost: "M4.9 4.9l10.2 10.2",
  };

  const languages = new Map([["", {}]]); // labels by language; "": in any
  const connected = new Set();

  const lower = (language) => String(language).toLowerCase();

  function setLabels(language, labels) {
    languages.set(lower(language), { ...languages.get(lower(language)), ...labels });
    for (const element of connected) refresh(element);
  }

  // Intl's objects are dear to make: each is kept.
  const formats = new Map();

  function format(kind, language, options, value) {
    const key = kind + language + JSON.stringify(options);
    if (!formats.has(key)) {
      let made;
      try {
        made = new Intl[kind](language || undefined, options);
      } catch (error) {
        made = new Intl[kind](); // no language, or an option that this browser lacks
      }
      formats.set(key, made);
    }
    return formats.get(key).format(value);
  }

  /** Text from the server, without what could disturb the text around it. */
  function clean(value, most = 1000) {
    const text = typeof value === "string" ? value : value == null ? "" : JSON.stringify(value);
    const cut = text.length > most ? `${text.slice(0, most).replace(/[\ud800-\udbff]$/, "")}…` : text;
    // Control characters, and those that turn the direction of what follows.
    return cut.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, "");
  }

  // All elements that changed are drawn in one go, before the browser draws the page.
  const changed = new Set();

  function refresh(element) {
    if (!changed.size) element._styled.then(() => requestAnimationFrame(draw));
    changed.add(element);
  }

  function draw() {
    const elements = [...changed];
    changed.clear();
    for (const element of elements) element._draw();
    for (const root of new Set(elements.map((element) => element.getRootNode()))) {
      for (const node of root.querySelectorAll("[data-metric]")) {
        const id = node.dataset.job || node.getAttribute("for");
        const element = id
          ? elements.find((other) => other.id === id && other.getRootNode() === root)
          : node.closest("job-state");
        if (!elements.includes(element) || !element.data) continue;
        const value = own(element.data, node.dataset.metric);
        const text =
          typeof value === "number"
            ? format("NumberFormat", element._language, {}, value)
            : clean(value);
        if (value !== undefined && node.textContent !== text) node.textContent = text;
      }
    }
  }

  // One live region speaks for all elements of the page.
  let speaker = null;
  const sentences = new Map();

  function prepareSpeaker() {
    if (speaker && speaker.isConnected) return;
    if (!document.body) return;
    speaker = document.createElement("div");
    speaker.setAttribute("role", "status");
    speaker.setAttribute("aria-live", "polite");
    speaker.style.cssText =
      "position:fixed;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap";
    document.body.appendChild(speaker);
  }

  function say(element, sentence) {
    if (!sentences.size) {
      setTimeout(() => {
        prepareSpeaker();
        speaker.textContent = [...sentences.values()].slice(0, 5).join(" ");
        sentences.clear();
      }, 200);
    }
    sentences.set(element, sentence);
  }

  const styles = new URL(
    "job-state.css",
    new URL(ownScript ? ownScript.src : `${defaultBaseUrl}/static/`, document.baseURI)
  ).href;
  let sheet = null; // a promise

  /**
   * Style a shadow root: with a constructed sheet that all share, since a strict policy
   * blocks a <style> in it, or with a link where that cannot be had.
   */
  async function addStyles(root) {
    sheet = sheet || loadSheet();
    try {
      root.adoptedStyleSheets = [await sheet];
    } catch (error) {
      root.appendChild(make("link", { rel: "stylesheet", href: styles }));
    }
  }

  async function loadSheet() {
    const made = new CSSStyleSheet();
    const response = await fetch(styles);
    if (!response.ok) throw response;
    made.replaceSync(await response.text());
    return made;
  }

  function make(name, attributes, ...children) {
    const svg = ["svg", "circle", "path"].includes(name) && "http://www.w3.org/2000/svg";
    const node = svg ? document.createElementNS(svg, name) : document.createElement(name);
    for (const key of Object.keys(attributes)) node.setAttribute(key, attributes[key]);
    for (const child of children) node.appendChild(child);
    return node;
  }

  /** An element whose part, class and place in a View's `parts` have one name. */
  function part(tag, name, attributes = {}, ...children) {
    return make(tag, { part: name, class: name, ...attributes }, ...children);
  }

  let template = null;

  function makeTemplate() {
    const auto = { dir: "auto" };
    return part("div", "job", { tabindex: "-1", hidden: "" },
      part("div", "head", {},
        part("svg", "icon", { viewBox: "0 0 20 20", "aria-hidden": "true" },
          part("circle", "ring", { cx: 10, cy: 10, r: 7.5 }),
          part("path", "sign")
        ),
        part("span", "title", { id: "title" },
          make("slot", { name: "title" }, part("span", "name", auto))),
        part("span", "percent", { "aria-hidden": "true" }),
        part("button", "cancel", { type: "button", id: "cancel", "aria-labelledby": "cancel title" })
      ),
      part("div", "bar", {
        role: "progressbar",
        "aria-labelledby": "title",
        "aria-valuemin": 0,
        "aria-valuemax": 100,
      }, part("div", "fill")),
      part("div", "foot", {},
        make("span", {}, part("span", "status"), part("span", "details")),
        part("span", "left")
      ),
      part("p", "message", auto),
      part("p", "notice", auto),
      part("ol", "log", { tabindex: "0" })
    );
  }

  /** The shadow tree of one element. Writes only what has changed. */
  class View {
    constructor(root) {
      template = template || makeTemplate();
      this.parts = {};
      this.slot = make("slot", {});
      const job = template.cloneNode(true);
      for (const node of [job, ...job.querySelectorAll("[part]")]) {
        this.parts[node.getAttribute("part")] = node;
      }
      root.appendChild(job);
      root.appendChild(this.slot);
      this.written = new Map();
    }

    isNew(key, value) {
      if (this.written.get(key) === value) return false;
      this.written.set(key, value);
      return true;
    }

    text(name, text) {
      if (this.isNew(name, text)) this.parts[name].textContent = text;
    }

    set(name, attribute, value) {
      if (!this.isNew(`${name} ${attribute}`, value)) return;
      if (value === null) {
        this.parts[name].removeAttribute(attribute);
      } else {
        this.parts[name].setAttribute(attribute, value);
      }
    }

    show(name, shown) {
      this.set(name, "hidden", shown ? null : "");
    }

    style(name, property, value) {
      if (this.isNew(`${name} ${property}`, value)) this.parts[name].style[property] = value;
    }

    log(lines) {
      const { log } = this.parts;
      if (!this.isNew("log", lines.join("\n"))) return;
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
      log.textContent = "";
      for (const line of lines) {
        log.appendChild(make("li", { dir: "auto" })).textContent = line;
      }
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
  }

  const PROPERTIES = {
    src: "src",
    csrfToken: "csrf-token",
    cancellable: "cancellable",
    log: "log",
    crossOrigin: "cross-origin",
  };
  const ASKING = ["src", "period", "csrf-token", "cross-origin"];

  class JobStateElement extends HTMLElement {
    static get observedAttributes() {
      return [
        ...ASKING, "cancellable", "log", "lang",
        ...Object.keys(ENGLISH).map((name) => `label-${name}`),
      ];
    }

    constructor() {
      super();
      this._view = new View(this.attachShadow({ mode: "open" }));
      this._styled = addStyles(this.shadowRoot);
      this._poller = null;
      this._data = null;
      this._reason = null; // why it is out of sight
      this._asking = false; // to cancel
      this._complaint = "";
      this._quarter = null; // the last that was spoken of
      this._stale = true; // the poller is not, or no longer, what the attributes say
      this._view.parts.cancel.addEventListener("click", () => this.cancel().catch(() => {}));
      this._view.slot.addEventListener("slotchange", () => refresh(this));
    }

    connectedCallback() {
      for (const name of [...Object.keys(PROPERTIES), "period", "data"]) {
        // Set before the script was there.
        if (!Object.prototype.hasOwnProperty.call(this, name)) continue;
        const value = this[name];
        delete this[name];
        this[name] = value;
      }
      connected.add(this);
      prepareSpeaker();
      this._follow();
      refresh(this);
    }

    disconnectedCallback() {
      // One that is moved comes back before this.
      Promise.resolve().then(() => {
        if (this.isConnected) return;
        connected.delete(this);
        if (this._poller && this.data && this.data.job_state !== "working") return;
        this._stop();
      });
    }

    attributeChangedCallback(name, old, value) {
      if (ASKING.includes(name) && (old !== value || this.state === "lost")) {
        if (name === "src") this._forget();
        this._stop();
        // Attributes that change together are one change.
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

    /** The last data, or null. Setting them shows them. */
    get data() {
      return this._data;
    }

    set data(data) {
      this._data = isJob(data) ? data : null;
      this._reason = null;
      refresh(this);
    }

    get state() {
      const { _data: data, _reason: reason } = this;
      if (reason) return reason.final ? "lost" : "reconnecting";
      return data ? String(data.job.status) : "loading";
    }

    async cancel() {
      if (this._asking || !this._poller) return false;
      this._asking = true;
      this._complaint = "";
      refresh(this);
      try {
        return await this._poller.cancel();
      } catch (reason) {
        this._asking = false;
        this._complaint = this._label("cancel-failed", { reason: reason.message });
        say(this, this._complaint);
        throw reason;
      } finally {
        refresh(this);
      }
    }

    _follow() {
      if (!this._stale || !this.isConnected || !this.src) return;
      this._stale = false;
      const lose = (reason) => {
        this._reason = reason;
        this._tell("lost", reason);
      };
      try {
        this._poller = startPolling({
          url: this.src,
          pollingPeriod: this.period,
          csrfToken: this.csrfToken,
          crossOrigin: this.crossOrigin,
          update: (data) => {
            this.data = data;
            if (!data.job.cancellable || data.job.status === "cancelling") this._asking = false;
            this._tell("update", data);
          },
          success: (data) => this._tell("success", data),
          error: (data) => this._tell("error", data),
          lost: lose,
        });
      } catch (error) {
        console.error(error);
        lose(final(Object.assign(error, { code: "address", status: 0 })));
      }
    }

    _stop() {
      this._stale = true;
      if (this._poller) this._poller.stop();
      this._poller = null;
    }

    _forget() {
      this._data = this._reason = this._quarter = null;
      this._asking = false;
      this._complaint = "";
    }

    _tell(name, detail) {
      refresh(this);
      this.dispatchEvent(
        new CustomEvent(`job-state:${name}`, { bubbles: true, composed: true, detail })
      );
    }

    get _language() {
      const element = this.closest("[lang]");
      return (element && element.lang) || "";
    }

    _label(name, values = {}) {
      const language = lower(this._language);
      const found = [
        { [name]: this.getAttribute(`label-${name}`) },
        languages.get(language),
        languages.get(language.split("-")[0]),
        languages.get(""),
        ENGLISH,
      ].find((labels) => labels && labels[name] != null);
      return String(found[name]).replace(/\{(\w+)\}/g, (match, key) => own(values, key)).trim();
    }

    /** The job's, else the text that the page was written with. */
    _title(job) {
      return clean(job.title || this.textContent.trim() || this._label("job"), 200);
    }

    _number(value, options = { maximumFractionDigits: 1 }) {
      return format("NumberFormat", this._language, options, value);
    }

    _duration(seconds) {
      const s = Math.max(1, Math.round(seconds));
      const [value, unit] =
        s < 60 ? [s < 10 ? s : Math.round(s / 5) * 5, "second"]
        : s < 3570 ? [Math.round(s / 60), "minute"]
        : s < 86400 ? [Math.round(s / 360) / 10, "hour"]
        : [Math.round(s / 8640) / 10, "day"];
      return this._number(value, { style: "unit", unit, unitDisplay: "short" });
    }

    _time(iso) {
      const time = new Date(iso);
      if (!(time > Date.now())) return null;
      const soon = time - Date.now() < 120 * 1000;
      const today = time.toDateString() === new Date().toDateString();
      const options = { timeStyle: soon ? "medium" : "short" };
      if (!today) options.dateStyle = "medium";
      return format("DateTimeFormat", this._language, options, time);
    }

    /** What stands behind the status: how much of how much, how fast. */
    _details(job, state) {
      const { done, total, unit, eta } = job.progress || {};
      const details = [];
      const due = state === "queued" || state === "retrying" ? this._time(job.due_at) : null;
      if (job.attempt > 1 || (state === "retrying" && job.attempt)) {
        details.push(this._label("attempt", { number: this._number(job.attempt) }));
      }
      if (due) details.push(this._label(state === "queued" ? "due" : "retry", { time: due }));
      if (Number.isFinite(done) && (total || done || unit)) {
        const values = {
          done: this._number(done),
          total: this._number(total),
          // Isolated, so that words of another direction leave the numbers alone.
          unit: unit ? `\u2068${clean(unit, 30)}\u2069` : "",
        };
        details.push(this._label(Number.isFinite(total) && total !== null ? "amount-of" : "amount", values));
      }
      const elapsed = (new Date(job.updated_at) - new Date(job.started_at)) / 1000;
      const rate = eta > 0 && total > done ? (total - done) / eta : done / elapsed;
      if (state === "working" && rate > 0 && rate < Infinity && elapsed >= 1) {
        const slow = rate < 1;
        const amount = this._number(slow ? rate * 60 : rate, { maximumSignificantDigits: 2 });
        details.push(this._label(slow ? "rate-slow" : "rate", { amount }));
      }
      const took = (new Date(job.finished_at) - new Date(job.started_at)) / 1000;
      if (state === "success" && job.started_at && took >= 0) {
        details.push(this._label("took", { time: this._duration(took) }));
      }
      return details;
    }

    _notice(job, state) {
      const { _reason: reason } = this;
      if (state === "lost") {
        const name = reason.code === "redirect" ? "signed-out" : REASONS[reason.status];
        return reason.code === "address" || !name ? reason.message : this._label(name);
      }
      if (state === "error" || state === "cancelled") return clean(job.error && job.error.message);
      return this._complaint;
    }

    _draw() {
      const { _view: view, state } = this;
      const { cancel, job: panel } = view.parts;
      const job = this._data ? this._data.job : {};
      const word = this._label(own(ENGLISH, state) ? state : "working");
      const answered = this._data || state === "lost";
      const progress = job.progress || {};
      const isOver = ["success", "error", "cancelled", "lost"].includes(state);
      let { fraction } = progress;
      fraction = Number.isFinite(fraction) ? Math.min(Math.max(fraction, 0), 1) : null;
      if (state === "success") fraction = 1;
      const moving = state === "working" || state === "cancelling";
      const indeterminate = fraction === null && moving;
      const percent = fraction === null
        ? ""
        : this._number(Math.floor(fraction * 100 + 1e-9) / 100, { style: "percent" });

      if (this.getAttribute("state") !== state) this.setAttribute("state", state);
      // What the server wrote into the page stands until there is something to show,
      // and for good if it waits for metrics.
      view.slot.hidden = Boolean(answered && !this.querySelector("[data-metric]"));
      view.show("job", answered || !this.textContent.trim());
      view.set("job", "class", `job ${state}${indeterminate ? " indeterminate" : ""}${state === "working" ? " spin" : ""}`);
      view.set("sign", "d", own(ICONS, state) || "");
      view.text("name", this._title(job));
      view.text("percent", percent);
      view.style("fill", "transform", indeterminate ? "" : `translateX(${-100 + 100 * (fraction || 0)}%)`);
      view.text("status", word);
      const details = this._details(job, state);
      view.text("details", details.map((detail) => ` · ${detail}`).join(""));
      const left = state === "working" && progress.eta > 0 && progress.eta < 1e8
        ? this._label("left", { time: this._duration(progress.eta) })
        : "";
      view.text("left", left);
      view.text("message", clean(job.message, 500));
      view.text("notice", this._notice(job, state));

      view.set("bar", "aria-valuenow", fraction === null ? null : String(Math.floor(fraction * 100)));
      const spoken = [fraction === null || isOver ? word : percent, ...details, left];
      view.set("bar", "aria-valuetext", spoken.filter(Boolean).join(", "));

      const lines = Array.isArray(job.log) ? job.log.slice(-20).map((line) => clean(line, 200)) : [];
      view.show("log", this.log && lines.length);
      view.set("log", "aria-label", this._label("log"));
      if (this.log) view.log(lines);

      const cancellable = Boolean(this.cancellable && job.cancellable && state !== "cancelling" && !isOver);
      if (!cancellable && this.shadowRoot.activeElement === cancel) panel.focus();
      view.show("cancel", cancellable);
      view.text("cancel", this._label(this._asking ? "cancelling" : "cancel"));
      view.set("cancel", "aria-disabled", String(this._asking));

      this._speak(job, state, fraction, isOver, word, percent);
    }

    /** Speaks at the start, at each quarter and at the end. */
    _speak(job, state, fraction, isOver, word, percent) {
      if (!this._data && state !== "lost") return;
      const before = this._quarter;
      const now = isOver ? "over" : Math.floor((fraction || 0) * 4);
      this._quarter = now;
      // A job that was over when the page came is no news.
      if (before === now || (before === null && isOver && state !== "lost")) return;
      if (before !== null && !isOver && !(now > before)) return;
      const rest = isOver ? `${word}. ${this._notice(job, state)}` : before === null ? word : percent;
      say(this, `${this._title(job)}: ${rest}`.trim());
    }
  }

  for (const property of Object.keys(PROPERTIES)) {
    const name = PROPERTIES[property];
    const isText = name === "src" || name === "csrf-token";
    Object.defineProperty(JobStateElement.prototype, property, {
      configurable: true,
      enumerable: true,
      get() {
        return isText ? this.getAttribute(name) || "" : this.hasAttribute(name);
      },
      set(value) {
        if (value == null || value === false) this.removeAttribute(name);
        else this.setAttribute(name, isText ? value : "");
      },
    });
  }

  window.JobState = {
    startPolling,
    setLabels,
    JobStateElement,
    get labels() {
      return { ...ENGLISH, ...languages.get("") };
    },
    set labels(labels) {
      setLabels("", labels);
    },
  };
  if (!customElements.get("job-state")) customElements.define("job-state", JobStateElement);
})();
