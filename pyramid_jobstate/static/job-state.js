/*!
 * job-state.js: the browser side of pyramid_jobstate.
 *
 *   JobState.startPolling({jobUuid, update, success, error, lost})
 *
 * A classic script without dependencies that defines window.JobState and nothing
 * else. job-state.d.ts beside this file documents every option and callback.
 */
(() => {
  "use strict";

  // All times are milliseconds.
  const DEFAULT_PERIOD = 1000;
  const MIN_GAP = 50; // between an answer and the next request, whatever happens
  const MAX_BACKOFF = 30 * 1000;
  const MAX_RETRY_AFTER = 5 * 60 * 1000;
  const REQUEST_TIMEOUT = 30 * 1000;
  const MAX_TIMER = 2 ** 31 - 1; // a longer setTimeout fires at once

  // document.currentScript is set only while the script is being loaded.
  const ownScript = document.currentScript;
  const defaultBaseUrl = (ownScript && ownScript.dataset.baseUrl) || "/job_state";

  /** Follow one job. See job-state.d.ts. */
  function startPolling(options) {
    const { url, period, callbacks, csrfToken, signal } = checkOptions(options);
    const stop = () => watch.end("stopped");
    const watch = new Watch(callbacks, () => {
      schedule.stop();
      if (signal) signal.removeEventListener("abort", stop);
    });
    let etag = null;
    const schedule = new Schedule(
      period,
      (controller) => askForJob(url, etag, controller),
      (answer) => {
        if (answer.reason) {
          watch.lose(answer.reason);
        } else if (answer.unchanged) {
          watch.confirm();
        } else {
          etag = answer.etag;
          watch.receive(answer.data);
        }
      }
    );
    if (signal && signal.aborted) {
      stop();
    } else {
      if (signal) signal.addEventListener("abort", stop);
      schedule.wake();
    }
    return {
      stop,
      done: watch.done,
      async cancel() {
        const accepted = await askToCancel(url, csrfToken);
        schedule.refresh();
        return accepted;
      },
    };
  }

  /**
   * What one caller wants to know of one job: its callbacks, the last data, and how
   * it ended. Knows nothing of requests and timers; `release` tells those it is over.
   */
  class Watch {
    constructor(callbacks, release) {
      this.callbacks = callbacks;
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

    /** The last data are still true. Worth an update only where `lost` said otherwise. */
    confirm() {
      if (this.outage) this.receive(this.data);
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

  /**
   * When to ask. `ask(controller)` resolves, always, to an answer: an object that
   * holds a `reason` if the question failed. `deliver(answer)` may call stop().
   */
  class Schedule {
    constructor(period, ask, deliver) {
      this.period = period;
      this.ask = ask;
      this.deliver = deliver;
      this.failures = 0;
      this.notBefore = 0;
      this.timer = null;
      this.controller = null; // of the request in flight
      this.again = false;
      this.away = false; // left, perhaps into the back/forward cache
      this.stopped = false;
      this.wake = this.wake.bind(this);
      this.pageshow = () => {
        this.away = false;
        this.wake();
      };
      // A browser that leaves a page cuts its requests off, which is no outage.
      this.pagehide = () => {
        this.away = true;
        clearTimeout(this.timer);
        if (this.controller) this.controller.abort();
      };
      document.addEventListener("visibilitychange", this.wake);
      window.addEventListener("online", this.wake);
      window.addEventListener("pageshow", this.pageshow);
      window.addEventListener("pagehide", this.pagehide);
    }

    /** Ask as soon as may be, unless a question is already on its way. */
    wake() {
      if (!this.controller) this.plan(0);
    }

    /** The same, but what is on its way is too old to count. */
    refresh() {
      this.again = true;
      this.wake();
    }

    stop() {
      this.stopped = true;
      clearTimeout(this.timer);
      if (this.controller) this.controller.abort();
      document.removeEventListener("visibilitychange", this.wake);
      window.removeEventListener("online", this.wake);
      window.removeEventListener("pageshow", this.pageshow);
      window.removeEventListener("pagehide", this.pagehide);
    }

    plan(delay) {
      clearTimeout(this.timer);
      if (this.stopped || this.away || document.hidden) return;
      const wait = Math.max(delay, this.notBefore - performance.now());
      if (wait > 0) {
        this.timer = setTimeout(() => this.run(), wait);
      } else {
        this.run();
      }
    }

    async run() {
      this.again = false;
      this.controller = new AbortController();
      const answer = await this.ask(this.controller);
      if (answer.reason && answer.reason.code === "aborted") {
        this.controller = null;
        this.plan(0);
        return;
      }
      const delay = this.delayAfter(answer);
      if (!this.stopped) this.deliver(answer);
      this.controller = null;
      this.plan(this.again ? 0 : delay);
    }

    delayAfter({ reason, retryAfter = 0 }) {
      this.notBefore = performance.now() + Math.max(MIN_GAP, retryAfter);
      if (!reason || reason.final) {
        this.failures = 0;
        return this.period;
      }
      this.failures += 1;
      const ceiling = Math.min(this.period * 2 ** this.failures, MAX_BACKOFF);
      const jitter = 0.5 + Math.random() / 2;
      reason.retryIn = Math.max(
        this.period,
        ceiling * jitter,
        // Everybody was told the same time: do not all come back at it.
        retryAfter && retryAfter + this.period * jitter
      );
      return reason.retryIn;
    }
  }

  /** Resolves to {data, etag}, {unchanged: true} or {reason, retryAfter}. */
  async function askForJob(url, etag, controller) {
    const headers = { Accept: "application/json" };
    // The browser's own cache would turn a 304 into a 200 with the old body.
    if (etag) headers["If-None-Match"] = etag;
    let response;
    let text;
    try {
      ({ response, text } = await send(url, { headers }, controller));
    } catch (reason) {
      return { reason };
    }
    if (response.status === 304 && etag) return { unchanged: true };
    if (!response.ok) {
      return { reason: refusal(response), retryAfter: retryAfter(response.headers) };
    }
    const data = parseJob(text);
    if (data) return { data, etag: response.headers.get("ETag") };
    return { reason: final(problem("format", response.status)) };
  }

  async function askToCancel(url, csrfToken) {
    const target = new URL(url);
    target.pathname = target.pathname.replace(/\/?$/, "/cancel");
    const headers = { Accept: "application/json", "X-Requested-With": "XMLHttpRequest" };
    if (csrfToken) headers["X-CSRF-Token"] = csrfToken;
    const init = { method: "POST", headers };
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
        credentials: "same-origin",
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

  /** The data, or null for anything that is not a job's state. */
  function parseJob(text) {
    let data;
    try {
      data = JSON.parse(text);
    } catch (error) {
      return null;
    }
    const states = ["working", "success", "error"];
    const valid = data && states.includes(data.job_state) && data.job;
    return valid && typeof data.job === "object" ? data : null;
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
    const address = url == null ? `${baseUrl.replace(/\/+$/, "")}/${jobUuid}` : url;
    return {
      url: resolve(address) || check(false, `${url == null ? "baseUrl" : "url"} is no http(s) URL`),
      period: Math.min(Math.max(pollingPeriod, MIN_GAP), MAX_TIMER),
      callbacks,
      csrfToken,
      signal,
    };
  }

  /** The absolute form of an http(s) URL, else null. */
  function resolve(address) {
    try {
      const { href, protocol } = new URL(address, document.baseURI);
      return /^https?:$/.test(protocol) ? href : null;
    } catch (error) {
      return null;
    }
  }

  window.JobState = { startPolling };
})();
