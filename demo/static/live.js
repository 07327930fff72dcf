// Says how the page learns of its jobs, while any of them goes on.
(() => {
  "use strict";

  const TEXTS = {
    stream: "Live: the server tells this page of each change.",
    poll: "Polling: this page asks the server again and again.",
  };

  const unfinished = new Set();

  document.addEventListener("job-state:update", ({ target, detail }) => {
    const line = document.querySelector("[data-live]");
    line.textContent = TEXTS[target.transport];
    line.dataset.live = target.transport;
    if (detail.job_state === "working") unfinished.add(target);
    else unfinished.delete(target);
    line.hidden = unfinished.size === 0;
  });
})();
