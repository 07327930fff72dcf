// The page of a job: what its <job-state> does not do.
(() => {
  "use strict";

  const ENDS = ["job-state:success", "job-state:error"];

  // The page of an import shows more once the job has ended. In a hidden tab it waits, since
  // reloading takes the mark from the title.
  for (const end of ENDS) {
    document.addEventListener(end, ({ target }) => {
      if (!("reload" in target.dataset)) return;
      const reload = () => document.hidden || location.reload();
      document.addEventListener("visibilitychange", reload);
      reload();
    });
  }

  // Asks for permission to notify, unless the viewer has already answered.
  const button = document.querySelector("[data-tell]");
  if (button && window.Notification?.permission === "default") {
    button.hidden = false;
    button.addEventListener("click", async () => {
      button.textContent = (await JobState.askToNotify())
        ? "You will be notified if you leave this tab"
        : "Your browser will not notify you";
      button.disabled = true;
    });
    for (const end of ENDS) document.addEventListener(end, () => button.remove());
  }

  // A batch counts its jobs, which no metric does.
  const files = document.querySelector("[data-files]");
  if (files) {
    document.addEventListener("job-state:update", ({ detail }) => {
      files.textContent = detail.job.counts.success;
    });
  }

  const svg = document.querySelector(".course");
  if (!svg) return;

  document.addEventListener("job-state:update", ({ detail }) => {
    const { miles_run: miles, job } = detail;
    if (miles !== undefined) {
      document.querySelector("[data-miles]").textContent = miles.toFixed(2);
    }
    showCourse(job.progress?.fraction ?? 0);
  });

  /** Move the runner along the course, and colour the part already run. */
  function showCourse(fraction) {
    const line = svg.querySelector(".line");
    const { width } = line.getBBox();
    const x = fraction * width;
    // Each x occurs once on the course: find it by bisection.
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
})();
