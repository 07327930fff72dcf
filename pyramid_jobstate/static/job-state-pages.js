/*!
 * job-state-pages.js: what the pages of pyramid_jobstate do beside their elements.
 *
 * The page of a list selects jobs, acts on them, and says when there are new ones. The
 * page of a job acts on it. The attribute data-words has the words of both, in the
 * viewer's language; data-page has URLs, questions, and the token of CSRF checks.
 *
 * A classic script that defines no globals. It needs job-state.js.
 */
(() => {
"use strict";

// Milliseconds
const LOOK = 10 * 1000; // between two looks for new jobs
const FRESH = 30 * 1000; // the age at which nobody waits for a result any more

const DONE = { cancel: "cancel-done", rerun: "rerun-done", delete: "delete-done" };
const MEMORY = "job-state-pages"; // the key in sessionStorage

const page = document.querySelector('[data-jobstate="page"]');
if (!page) return;
const data = { ...JSON.parse(page.dataset.words), ...JSON.parse(page.dataset.page) };
const one = (name) => page.querySelector(`[data-jobstate="${name}"]`);
const actButtons = () => [...page.querySelectorAll("[data-act]")];
const dialog = one("dialog");

window.JobState.setLabels(page.lang, data.labels);
page.querySelectorAll("time").forEach(showLocally);
if (one("acts")) one("acts").hidden = false;
if (page.querySelector("tbody")) prepareRows();
if (one("copy")) prepareCopy();
if (data.url) prepareJob();
if (data.first) prepareLook();
recall();

/** Write a time in the viewer's zone and language: today's without the date. */
function showLocally(node) {
  const time = new Date(node.dateTime);
  const now = new Date();
  const options = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
  if (time.getFullYear() !== now.getFullYear()) options.year = "numeric";
  const isToday = time.toDateString() === now.toDateString();
  node.title = node.textContent || node.dateTime;
  node.textContent = format("DateTimeFormat", isToday ? { timeStyle: "medium" } : options, time);
}

function format(kind, options, value) {
  try {
    return new Intl[kind](page.lang, options).format(value);
  } catch {
    return new Intl[kind]([], options).format(value);
  }
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (match, name) => values[name]);
}

/** The form of a text for a number. */
function plural(name, number) {
  const { forms, at } = data.plurals[name];
  return fill(forms[at[Math.min(number, at.length - 1)]], {
    number: format("NumberFormat", {}, number),
  });
}

// Results, which the next page says

/** Load another page, or this one again, and have it say a text. */
function leave(text, url) {
  try {
    sessionStorage.setItem(MEMORY, JSON.stringify({ text, time: Date.now() }));
  } catch {
    // Without storage, the page shows what became of the jobs all the same.
  }
  if (url) location.assign(url);
  else location.reload();
}

/** Say what the page before this one has left to say. */
function recall() {
  try {
    const { text, time } = JSON.parse(sessionStorage.getItem(MEMORY)) || {};
    sessionStorage.removeItem(MEMORY);
    if (!text || Date.now() - time > FRESH) return;
    one("said").textContent = text;
    one("said").focus();
  } catch {
    // The browser refuses storage.
  }
}

// Acts

/** Why a request was refused. With `stops`, another one would be refused as well. */
class Refusal {
  constructor(text, stops) {
    Object.assign(this, { text, stops });
  }
}

/** Send one request that changes jobs. Resolves to its JSON, or rejects with a Refusal. */
async function send(url, method) {
  const { csrf, labels, words } = data;
  const headers = { Accept: "application/json", "X-Requested-With": "XMLHttpRequest" };
  let body;
  if (csrf && csrf.header) headers[csrf.header] = csrf.token;
  else if (csrf) body = new URLSearchParams({ [csrf.field]: csrf.token });
  let response;
  try {
    response = await fetch(url, {
      method, headers, body, credentials: "same-origin", redirect: "manual",
    });
    // An answer may break off.
    if (response.ok) return response.status === 204 ? {} : await response.json();
  } catch {
    throw new Refusal(labels.network, true);
  }
  if (response.type === "opaqueredirect") throw new Refusal(labels.redirect, true);
  const { status } = response;
  const text =
    { 409: words.changed, 410: words["not-repeatable"] }[status] || words[status] || labels[status];
  throw new Refusal(text || fill(labels.status, { status }), ![403, 404, 409, 410].includes(status));
}

function sendOne(act, url) {
  const target = new URL(url);
  if (act !== "delete") target.pathname = target.pathname.replace(/\/?$/, `/${act}`);
  return send(target, act === "delete" ? "DELETE" : "POST");
}

/**
 * Ask, then act, then load the page again, which says what became of the jobs. If something
 * went wrong, the dialog says it first.
 *
 * `act` gets a new result, and fills it.
 */
function ask(question, verb, name, act, next) {
  const [yes, no, close] = ["yes", "no", "close"].map(one);
  const result = { done: 0, refused: 0, reasons: new Set() };
  const summary = () => summarize(name, result);
  const say = (text) => {
    one("result").textContent = text;
  };
  one("question").textContent = question;
  say("");
  yes.textContent = verb;
  yes.hidden = no.hidden = false;
  close.hidden = true;
  dialog.onclose = dialog.oncancel = null;
  yes.onclick = async () => {
    // Closing the dialog would not stop what it has begun.
    dialog.oncancel = (event) => event.preventDefault();
    yes.hidden = no.hidden = true;
    one("result").focus();
    say(data.words["under-way"]);
    await act(result, () => say(summary()));
    dialog.oncancel = null;
    const go = () => leave(summary(), result.done ? next : null);
    if (!dialog.open || !result.reasons.size) {
      go();
      return;
    }
    say(summary());
    dialog.onclose = go;
    close.hidden = false;
    close.focus();
  };
  dialog.showModal();
  no.focus();
}

function summarize(name, { done, refused, reasons }) {
  const texts = [];
  if (done || !reasons.size) texts.push(plural(DONE[name], done));
  if (refused) texts.push(plural("refused", refused));
  return [...texts, ...reasons].join(" ");
}

/** Act on each of some jobs, until a request says that no other would do better. */
async function actOnEach(act, urls, result, tell) {
  for (const url of urls) {
    try {
      await sendOne(act, url);
      result.done += 1;
    } catch (refusal) {
      result.reasons.add(refusal.text);
      if (refusal.stops) return;
      result.refused += 1;
    }
    tell();
  }
}

/** Act on all jobs that match, a thousand at a time. */
async function actOnAll(url, result, tell) {
  const target = new URL(url);
  try {
    for (let cursor = ""; cursor !== null; ) {
      if (cursor) target.searchParams.set("cursor", cursor);
      const answer = await send(target, "POST");
      result.done += answer.done;
      result.refused += answer.refused || 0;
      cursor = answer.cursor;
      tell();
    }
  } catch (refusal) {
    result.reasons.add(refusal.text);
  }
}

// The list

function prepareRows() {
  const rows = [...page.querySelectorAll("tbody tr")].map((row) => ({
    row,
    url: row.querySelector("job-state").src,
    box: row.querySelector("input"),
    status: row.dataset.status,
    acts: row.dataset.acts.split(" "),
  }));
  const refresh = rows.some(({ box }) => box) ? prepareSelection(rows) : () => {};
  page.addEventListener("job-state:update", ({ target, detail: { job } }) => {
    const known = rows.find(({ row }) => row.contains(target));
    if (!known) return;
    known.row.querySelector(".jobstate-number").textContent = format("NumberFormat", {}, job.attempt);
    if (known.status === job.status) return;
    known.status = job.status;
    showEnd(known.row.querySelector(".jobstate-ended"), job.finished_at);
    known.acts = actsOn(job);
    refresh();
  });
}

function showEnd(cell, iso) {
  cell.textContent = "";
  if (!iso) return;
  const time = document.createElement("time");
  time.dateTime = iso;
  showLocally(time);
  cell.append(time);
}

/** What may be done with a job whose status has changed, if the server agrees. */
function actsOn({ status, cancellable }) {
  return [
    cancellable && status !== "cancelling" && "cancel",
    status === "error" && "rerun",
    isOver(status) && "delete",
  ];
}

function isOver(status) {
  return ["success", "error", "cancelled"].includes(status);
}

/** Let the viewer select rows, and act on them. Returns what follows from a change. */
function prepareSelection(rows) {
  const [all, matching] = ["all", "matching"].map(one);
  const boxes = rows.map(({ box }) => box);
  const selected = () => rows.filter(({ box }) => box.checked);
  const chosen = (act) => selected().filter(({ acts }) => acts.includes(act));
  const refresh = () => {
    const count = selected().length;
    all.checked = count === rows.length;
    all.indeterminate = count > 0 && count < rows.length;
    all.disabled = matching.checked;
    for (const box of boxes) box.disabled = matching.checked;
    one("selected").textContent = count && !matching.checked ? plural("selected", count) : "";
    for (const button of actButtons()) {
      button.disabled = !matching.checked && !chosen(button.dataset.act).length;
    }
  };
  let last = null;
  const extend = ({ target, shiftKey }) => {
    // From the row that was clicked before
    const [from, to] = [last, target].map((box) => boxes.indexOf(box)).sort((a, b) => a - b);
    if (shiftKey && from >= 0) {
      for (const box of boxes.slice(from, to + 1)) box.checked = target.checked;
    }
    last = target;
    refresh();
  };
  for (const box of boxes) {
    box.hidden = false;
    box.addEventListener("click", extend);
  }
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
  });
  page.addEventListener("change", refresh);
  for (const button of actButtons()) {
    const { act } = button.dataset;
    button.addEventListener("click", () => {
      const verb = button.textContent;
      if (matching.checked) {
        const { url, question } = data.bulk[act];
        ask(question, verb, act, (result, tell) => actOnAll(url, result, tell));
      } else {
        const urls = chosen(act).map(({ url }) => url);
        const question = plural(act, urls.length);
        ask(question, verb, act, (result, tell) => actOnEach(act, urls, result, tell));
      }
    });
  }
  // A browser may have kept what was checked before the page was loaded again.
  refresh();
  return refresh;
}

function prepareLook() {
  one("new").addEventListener("click", () => location.reload());
  const timer = setInterval(async () => {
    if (document.hidden || dialog.open) return;
    const count = await look().catch(() => null);
    if (count === undefined) clearInterval(timer);
    if (typeof count !== "number") return;
    one("new").hidden = !count;
    if (count) one("new").textContent = plural("new", count);
  }, LOOK);
}

/**
 * Resolves to how many new jobs the first page of the list has by now, to null if the server
 * is busy, or to undefined if it will not say. New jobs are unknown and stand before a known
 * one: unknown ones at the end of the page have only moved up.
 */
async function look() {
  const response = await fetch(data.first, {
    headers: { Accept: "application/json" }, cache: "no-store", redirect: "manual",
  });
  if (response.status >= 500 || response.status === 429) return null;
  if (!response.ok) return undefined;
  const { items } = await response.json();
  const known = new Set([...page.querySelectorAll("tr[data-uuid]")].map((row) => row.dataset.uuid));
  const uuids = items.map(({ job }) => job.uuid);
  const end = data.more ? uuids.map((uuid) => known.has(uuid)).lastIndexOf(true) : uuids.length;
  return uuids.slice(0, Math.max(end, 0)).filter((uuid) => !known.has(uuid)).length;
}

// The page of a job

function prepareJob() {
  let isOld = false; // what the page shows beside its element
  for (const button of actButtons()) {
    const { act, question } = button.dataset;
    const next = act === "delete" ? data.list : null;
    button.addEventListener("click", () => {
      const run = (result, tell) => actOnEach(act, [data.url], result, tell);
      ask(question, button.textContent, act, run, next);
    });
  }
  let shown = data.seen; // by the timeline
  page.addEventListener("job-state:update", ({ detail }) => {
    addMetrics(detail);
    const { status, attempt } = detail.job;
    const seen = `${status} ${attempt}`;
    if (seen === shown) return;
    shown = seen;
    if (!isOver(status)) refreshCourse();
  });
  if (data.ended) return;
  // What can be done has changed, too.
  const reload = () => {
    if (isOld && !dialog.open) location.reload();
  };
  for (const type of ["success", "error"]) {
    page.addEventListener(`job-state:${type}`, () => {
      isOld = true;
      reload();
    });
  }
  dialog.addEventListener("close", reload);
}

/** Show the timeline and the failure as the server has them by now. */
function refreshCourse() {
  // This parses HTML even where a policy requires trusted types, unlike DOMParser.
  const request = new XMLHttpRequest();
  request.open("GET", location.href);
  request.responseType = "document";
  request.setRequestHeader("Accept", "text/html");
  request.onload = () => {
    const find = (name) => request.response?.querySelector(`[data-jobstate="${name}"]`);
    const [timeline, failure] = ["timeline", "failure"].map(find);
    if (!timeline) return; // another page, such as one for logging in
    timeline.querySelectorAll("time").forEach(showLocally);
    one("timeline").replaceWith(timeline);
    const old = one("failure");
    // Somebody may be reading an old one that is the same.
    if (!failure || old?.isEqualNode(failure)) return;
    if (old) old.replaceWith(failure);
    else dialog.before(failure);
  };
  request.send();
}

/** Make room for metrics that the job had not reported when the page was loaded. */
function addMetrics(state) {
  const names = Object.keys(state).filter((name) => name !== "job" && name !== "job_state");
  const known = [...page.querySelectorAll("[data-metric]")].map((node) => node.dataset.metric);
  for (const name of names.filter((each) => !known.includes(each))) {
    const value = make("dd", { dir: "auto" });
    value.dataset.metric = name;
    value.dataset.job = "jobstate-job";
    const fact = make("div", {}, make("dt", {}, name), value);
    (one("metrics") || addSection()).querySelector("dl").append(fact);
  }
}

function addSection() {
  const heading = make("h2", {}, data.words.metrics);
  const section = make("section", {}, heading, make("dl", { className: "jobstate-facts" }));
  section.dataset.jobstate = "metrics";
  page.querySelector("section").after(section);
  return section;
}

function make(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function prepareCopy() {
  const button = one("copy");
  if (!navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(one("id").textContent);
      button.textContent = button.dataset.copied;
    } catch {
      // The browser does not let this page copy.
      getSelection().selectAllChildren(one("id"));
    }
  });
}
})();
