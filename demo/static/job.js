// The page of a job: what its <job-state> does not do.
(() => {
  "use strict";

  // The page of an import shows more once the job is done.
  document.addEventListener("job-state:success", ({ target }) => {
    if ("reload" in target.dataset) location.reload();
  });

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
