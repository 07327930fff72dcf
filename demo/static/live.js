// Says how the page learns of its jobs.
(() => {
  "use strict";

  const TEXTS = {
    stream: "Live: the server tells this page of each change.",
    poll: "Polling: this page asks the server again and again.",
  };

  document.addEventListener("job-state:update", ({ target }) => {
    const line = document.querySelector("[data-live]");
    line.textContent = TEXTS[target.transport];
    line.dataset.live = target.transport;
    line.hidden = false;
  });
})();
