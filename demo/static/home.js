// The user's own jobs, a page at a time, as GET /job_state lists them.
(() => {
  "use strict";

  const section = document.querySelector("[data-list]");
  const list = section.querySelector("ol");
  const empty = section.querySelector(".empty");
  const notice = section.querySelector(".notice");
  const more = section.querySelector("button");
  const template = section.querySelector("template");
  const url = new URL(section.dataset.list);

  /** Show the next page of the list. */
  async function show() {
    more.disabled = true;
    try {
      const response = await fetch(url, { headers: { Accept: "application/json" } });
      if (!response.ok) throw response;
      const { items, cursor } = await response.json();
      list.append(...items.map(row));
      if (cursor) url.searchParams.set("cursor", cursor);
      more.hidden = !cursor;
      empty.hidden = list.children.length > 0 || !more.hidden;
      notice.hidden = true;
      more.textContent = "Show more";
    } catch {
      more.textContent = "Try again";
      notice.hidden = more.hidden = false;
    }
    more.disabled = false;
  }

  function row(data) {
    const item = document.importNode(template.content, true);
    const element = item.querySelector("job-state");
    // A finished job does not change any more.
    if (data.job_state === "working") element.src = new URL(data.job.uuid, section.dataset.list);
    element.data = data;
    const link = item.querySelector("a");
    link.href = section.dataset.pages + data.job.uuid;
    link.ariaLabel = data.job.title;
    return item;
  }

  more.addEventListener("click", show);
  show();

  // Tell the user before they upload five megabytes, not after.
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
