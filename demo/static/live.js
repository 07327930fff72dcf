// Says how the page learns of its jobs, while any of them goes on.
(() => {
  "use strict";

  const TEXTS = {
    stream: "Live: the server tells this page of each change.",
    poll: "Polling: this page asks the server again and again.",
  };

  const unfinished = new Set();

  document.addEventListener("job-state:update", ({ target, detail }) => {
    const isUnfinished = detail.job_state === "working";
    show(target, isUnfinished);
    if (!isUnfinished) return;
    const line = document.querySelector("[data-live]");
    line.textContent = TEXTS[target.transport];
    line.dataset.live = target.transport;
  });

  document.addEventListener("job-state:lost", ({ target, detail }) => {
    if (detail.final) show(target, false);
  });

  function show(element, isUnfinished) {
    unfinished[isUnfinished ? "add" : "delete"](element);
    document.querySelector("[data-live]").hidden = unfinished.size === 0;
  }
})();
