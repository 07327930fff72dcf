// Shows jobs as they go on. An element with data-job carries the state that came with
// the page; within it
//
//   data-text="job.message"      shows what is found under that path,
//   data-format="whole"          in one of the formats below,
//   data-if="job.error"          is there only if something is found,
//   data-progress, data-log, data-course, data-lost, data-cancel   say it all.
//
// What the server says is put in as text, never as HTML.
(() => {
  "use strict";

  const STATUSES = {
    queued: "Waiting for a worker",
    working: "Running",
    retrying: "Trying again soon",
    stalled: "No sign of life",
    cancelling: "Being cancelled",
    success: "Finished",
    error: "Failed",
    cancelled: "Cancelled",
  };

  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const two = (n) => String(n).padStart(2, "0");

  const formats = {
    text: String,
    status: (status) => STATUSES[status] ?? status,
    whole: (n) => number.format(n),
    miles: (n) => n.toFixed(2),
    percent: (fraction) => `${Math.floor(fraction * 100)} %`,
    clock: (s) => `${Math.floor(s / 3600)}:${formats.pace(s % 3600).padStart(5, "0")}`,
    pace: (s) => `${Math.floor(s / 60)}:${two(Math.floor(s % 60))}`,
    wait: (s) => (s < 60 ? `${Math.ceil(s)} s` : `${Math.round(s / 60)} min`),
  };

  const find = (data, path) => path.split(".").reduce((value, key) => value?.[key], data);

  function show(root, data) {
    const { job } = data;
    data.working = data.job_state === "working";
    if (job.finished_at && job.started_at) {
      data.took = (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000;
    }
    root.dataset.status = job.status;
    for (const element of root.querySelectorAll("[data-text]")) {
      const value = find(data, element.dataset.text);
      const format = formats[element.dataset.format ?? "text"];
      // Nothing is changed that reads the same: a screen reader would say it again.
      const text = value == null ? "" : format(value);
      if (element.textContent !== text) element.textContent = text;
    }
    for (const element of root.querySelectorAll("[data-if]")) {
      const value = find(data, element.dataset.if);
      element.hidden = Array.isArray(value) ? value.length === 0 : !value;
    }
    showProgress(root, job);
    showLog(root.querySelector("[data-log]"), job.log);
    showCourse(root.querySelector("[data-course]"), job.progress?.fraction ?? 0);
  }

  function showProgress(root, { status, progress }) {
    const bar = root.querySelector("[data-progress]");
    const fraction = progress?.fraction;
    if (fraction != null) {
      bar.value = fraction;
    } else if (status === "working") {
      bar.removeAttribute("value");
    } else {
      bar.value = 0;
    }
  }

  function showLog(list, lines) {
    if (!list || list.dataset.shown === String(lines)) return;
    list.dataset.shown = String(lines);
    list.replaceChildren(
      ...lines.toReversed().map((line) => {
        const item = document.createElement("li");
        item.textContent = line;
        return item;
      })
    );
  }

  /** Move the runner along the course, and colour what is behind. */
  function showCourse(svg, fraction) {
    if (!svg) return;
    const line = svg.querySelector(".line");
    const { width } = line.getBBox();
    const x = fraction * width;
    // The course has one height at each x: look for it by halves.
    let [from, to] = [0, line.getTotalLength()];
    while (to - from > 0.5) {
      const middle = (from + to) / 2;
      if (line.getPointAtLength(middle).x < x) from = middle;
      else to = middle;
    }
    svg.querySelector("circle").setAttribute("cx", x);
    svg.querySelector("circle").setAttribute("cy", line.getPointAtLength(to).y);
    svg.querySelector("clipPath rect").setAttribute("width", x);
  }

  function follow(root) {
    const state = JSON.parse(root.dataset.state);
    show(root, state);
    if (state.job_state !== "working") return;

    const notice = root.querySelector("[data-lost]");
    const say = (text) => {
      if (!notice) return;
      notice.textContent = text;
      notice.hidden = !text;
    };
    const poller = JobState.startPolling({
      url: state.job.url,
      pollingPeriod: Number(root.dataset.period),
      csrfToken: root.dataset.csrfToken,
      update: (data) => {
        say("");
        show(root, data);
      },
      success: () => {
        // The page has more to say once the job is done.
        if ("reload" in root.dataset) location.reload();
      },
      lost: (reason) => {
        say(
          reason.final
            ? "The server does not show this job any more. Load the page again."
            : "No word from the server at the moment. What you see may be old."
        );
      },
    });

    const button = root.querySelector("[data-cancel]");
    button?.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await poller.cancel();
      } catch {
        button.textContent = "Not cancelled. Try again";
        button.disabled = false;
      }
    });
  }

  for (const root of document.querySelectorAll("[data-job]")) follow(root);

  // Better told before five megabytes are on their way than after.
  for (const input of document.querySelectorAll("[data-max-bytes]")) {
    input.addEventListener("change", () => {
      const max = Number(input.dataset.maxBytes);
      const tooLarge = [...input.files].some((file) => file.size > max);
      input.setCustomValidity(
        tooLarge ? `The file is larger than ${max / 1024 / 1024} MB.` : ""
      );
      input.reportValidity();
    });
  }
})();
