/*!
 * job-state-pages.js: what the pages of pyramid_jobstate do beside their elements.
 *
 * The page of a list selects jobs, acts on them, and says when there are new ones. That of
 * groups of failed jobs runs them again, a group at a time. The page of a job acts on it, follows
 * its log, and renews what stands around its element. That of a batch counts its jobs, and runs
 * those again that have failed. The attribute data-words has the words of all, in the viewer's
 * language; data-page has URLs, questions, and the token of CSRF checks.
 *
 * A classic script that defines no globals. It needs job-state.js.
 */
(() => {
"use strict";

// Milliseconds
const LOOK = 10 * 1000; // between two looks for new jobs
const LOG_LOOK = 2 * 1000; // between two looks for new lines of a log
const TIMEOUT = 30 * 1000; // until a request that only reads is given up
const ACT_TIMEOUT = 120 * 1000; // one request may act on a thousand jobs
const HASTE = 500; // in which nobody reads a question
const ANSWER = 500; // between two looks for the answer of a worker
const FRESH = 30 * 1000; // the maximum age of a result that the page shows

// What `pjobs` shows as an escape, without the tab and the ends of lines.
const UNSAFE =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ud800-\udfff\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e00ff}\u{e01f0}-\u{e0fff}\p{NChar}]/gu;

const MOST_LINES = 2000; // of a log
const DONE = { cancel: "cancel-done", rerun: "rerun-done", delete: "delete-done" };
const MEMORY = "job-state-pages"; // the key in sessionStorage

const page = document.querySelector('[data-jobstate="page"]');
if (!page) return;
const data = { ...JSON.parse(page.dataset.words), ...JSON.parse(page.dataset.page) };
const one = (name) => page.querySelector(`[data-jobstate="${name}"]`);
const actButtons = () => [...page.querySelectorAll("[data-act]")];
const dialog = one("dialog");
let isBusy = false; // an act is under way
let haste; // the timer of the newest question
let isGone = false; // the browser has left the page

/** The parts around the element of a job, as the server has last sent them. */
const sent = new Map(
  ["acts", "where", "failure", "timeline", "log"].map((name) => [name, one(name)?.cloneNode(true)]),
);

window.JobState.setLabels(page.lang, data.labels);
page.querySelectorAll("time").forEach(showLocally);
if (one("acts")) one("acts").hidden = false;
if (data.groups) prepareGroups();
else if (page.querySelector("tbody")) prepareRows();
prepareCopies(page);
document.addEventListener("copy", copyHarmlessly);
if (data.url) prepareJob();
if (data.first) prepareLook();
keepOpen();
addEventListener("pagehide", () => {
  isGone = true;
});
addEventListener("pageshow", () => {
  isGone = false;
});
recall();

/** Write a time in the viewer's zone, without the date if it is today's or a short one. */
function showLocally(node) {
  const time = new Date(node.dateTime);
  const now = new Date();
  const options = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
  if (time.getFullYear() !== now.getFullYear()) options.year = "numeric";
  const isToday = time.toDateString() === now.toDateString();
  node.title = node.textContent || node.dateTime;
  const timeStyle = node.dataset.style || (isToday && "medium");
  node.textContent = format("DateTimeFormat", timeStyle ? { timeStyle } : options, time);
}

/** Write a number or a time in the language of the words, as the server does. */
function format(kind, options, value) {
  const lang = `${data.lang}-u-ca-gregory-nu-latn`;
  return new Intl[kind]([lang, "en"], { useGrouping: "always", ...options }).format(value);
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (match, name) => values[name] ?? match);
}

/** The form of a text for a number. After the number comes `more`. */
function plural(name, number, more = "") {
  const forms = data.plurals[name];
  const category = new Intl.PluralRules([data.lang, "en"]).select(number);
  const text = forms[category] ?? forms.other;
  return fill(text, { number: format("NumberFormat", {}, number) + more });
}

// Results, which the next page says

/** Have the next page, or this one after a reload, say a text. */
function remember(text) {
  // Requests that end because the browser leaves the page say nothing about the server.
  if (isGone) return;
  try {
    sessionStorage.setItem(MEMORY, JSON.stringify({ text, time: Date.now() }));
  } catch {
    // Without storage, the page shows what became of the jobs all the same.
  }
}

/** Load another page, or this one again, and have it say a text. */
function leave(text, url) {
  remember(text);
  if (isGone) return;
  // A deleted job is not to be found by going back.
  if (url) location.replace(url);
  else location.reload();
}

/** Show the result that the previous page has left. */
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
  constructor(text, stops, status) {
    Object.assign(this, { text, stops, status });
  }
}

/** Send one request that changes jobs. Resolves to its JSON, or rejects with a Refusal. */
async function send(url, method) {
  const { csrf, labels, words } = data;
  const headers = { Accept: "application/json", "X-Requested-With": "XMLHttpRequest" };
  let body;
  if (csrf && csrf.header) headers[csrf.header] = csrf.token;
  else if (csrf) body = new URLSearchParams({ [csrf.field]: csrf.token });
  const signal = AbortSignal.timeout(ACT_TIMEOUT);
  let response;
  try {
    response = await fetch(url, {
      method, headers, body, signal, credentials: "same-origin", redirect: "manual",
    });
    if (response.ok) return response.status === 204 ? {} : await response.json();
  } catch (error) {
    // A SyntaxError: the response is complete, but not JSON. It may be a login page.
    if (!(error instanceof SyntaxError)) throw new Refusal(labels.network, true);
  }
  if (response.type === "opaqueredirect") throw new Refusal(labels.redirect, true);
  const { status } = response;
  const text =
    { 400: labels.csrf, 409: words.changed, 410: words["not-repeatable"] }[status] ||
    words[status] ||
    labels[status];
  const stops = ![403, 404, 409, 410].includes(status);
  throw new Refusal(text || fill(labels.status, { status }), stops, status);
}

/** Read JSON. Resolves to undefined if the server refuses, to null if it cannot answer now. */
async function read(url) {
  const headers = { Accept: "application/json" };
  const signal = AbortSignal.timeout(TIMEOUT);
  try {
    const response = await fetch(url, { headers, signal, cache: "no-store", redirect: "manual" });
    if (response.status >= 500 || response.status === 429) return null;
    return response.ok ? await response.json() : undefined;
  } catch {
    return null;
  }
}

function sendOne(act, url) {
  const target = new URL(url);
  if (act !== "delete") target.pathname = target.pathname.replace(/\/?$/, `/${act}`);
  return send(target, act === "delete" ? "DELETE" : "POST");
}

/**
 * Keep the dialog open during an act: closing it would not stop the act. The key that has
 * opened it does not answer while it is held.
 */
function keepOpen() {
  const keep = (event) => {
    const isEscape = event.type === "cancel" || event.key === "Escape";
    if (isBusy ? isEscape : event.repeat && event.key === "Enter") event.preventDefault();
  };
  dialog.addEventListener("cancel", keep);
  dialog.addEventListener("keydown", keep);
  dialog.addEventListener("close", () => {
    // Browsers close it if Esc is pressed again.
    if (isBusy) dialog.showModal();
  });
}

/**
 * Ask, then act, then load the page again, which says what became of the jobs. If something
 * went wrong, the dialog says it first.
 *
 * `number` is how many jobs this is about, if that is known. `prepare` resolves to the
 * question. `act` gets a new result, and fills it.
 */
async function ask({ verb, name, number = 2, prepare, act, next }) {
  const [yes, no, close] = ["yes", "no", "close"].map(one);
  const result = { done: 0, refused: 0, reasons: new Set() };
  const summary = () => summarize(name, result);
  const say = (text) => {
    one("result").textContent = text;
  };
  one("question").textContent = "";
  say(data.words["under-way"]);
  const isFinal = name === "delete";
  yes.textContent = verb;
  yes.classList.toggle("jobstate-final", isFinal);
  no.textContent = isFinal ? plural("keep", number) : data.words.keep;
  no.hidden = false;
  yes.hidden = close.hidden = true;
  let isLeft = false;
  dialog.onclose = () => {
    isLeft = true;
  };
  yes.onclick = async ({ detail }) => {
    // The end of a double click on the button that asked. That of a key has no detail.
    if (detail > 1 || (detail && yes.hasAttribute("aria-disabled"))) return;
    isBusy = true;
    yes.hidden = no.hidden = true;
    one("result").focus();
    say(data.words["under-way"]);
    await act(result, () => {
      say(summary());
      remember(summary());
    });
    isBusy = false;
    const go = () => leave(summary(), result.done ? next : null);
    if (!result.reasons.size) {
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
  let text;
  try {
    text = await prepare();
  } catch (refusal) {
    if (isLeft) return;
    text = refusal.text;
    no.hidden = true;
    close.hidden = false;
    // This page may have an old token. The next one has a new one.
    if (refusal.status === 400) dialog.onclose = () => leave(text);
  }
  if (isLeft) return;
  say("");
  one("question").textContent = text;
  if (!close.hidden) {
    close.focus();
    return;
  }
  yes.hidden = false;
  yes.setAttribute("aria-disabled", true);
  clearTimeout(haste);
  haste = setTimeout(() => yes.removeAttribute("aria-disabled"), HASTE);
}

function summarize(name, { done, refused, reasons }) {
  const texts = [];
  if (done || !reasons.size) texts.push(plural(DONE[name], done));
  if (refused) texts.push(plural("refused", refused));
  return [...texts, ...reasons].join(" ");
}

/** Act on each of some jobs, until a refusal that would meet the others, too. */
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

/** Ask, then act on each of some jobs. */
function askAboutEach(name, verb, urls) {
  ask({
    verb,
    name,
    number: urls.length,
    prepare: () => plural(name, urls.length),
    act: (result, tell) => actOnEach(name, urls, result, tell),
  });
}

/**
 * Act on all jobs that match, a thousand at a time.
 *
 * The act begins before the question, so that it concerns the jobs which match by then, and
 * no others.
 */
function askAboutAll(name, verb, { url, question, statuses, counts: source }) {
  const target = new URL(url);
  let cursor;
  const step = async (limit) => {
    if (limit) target.searchParams.set("limit", limit);
    else target.searchParams.delete("limit");
    if (cursor) target.searchParams.set("cursor", cursor);
    const answer = await send(target, "POST");
    cursor = answer.cursor;
    return answer;
  };
  const prepare = async () => {
    await step("0");
    const answer = source && (await read(source));
    // The state of a batch has the counts of its jobs.
    const { counts } = answer?.job || answer || {};
    if (!counts) return question;
    return plural(name, statuses.reduce((sum, each) => sum + counts[each], 0));
  };
  const act = async (result, tell) => {
    try {
      while (cursor !== null) {
        const { done, refused } = await step();
        result.done += done;
        result.refused += refused || 0;
        tell();
      }
    } catch (refusal) {
      result.reasons.add(refusal.text);
    }
  };
  ask({ verb, name, prepare, act });
}

// The list

function prepareRows() {
  const rows = [...page.querySelectorAll("tr[data-uuid]")].map((row) => ({
    row,
    url: row.querySelector("job-state").src,
    box: row.querySelector("input"),
    status: row.dataset.status,
    acts: row.dataset.acts.split(" "),
    permitted: row.dataset.permitted.split(" "),
  }));
  const refresh = rows.some(({ box }) => box) ? prepareSelection(rows) : () => {};
  page.addEventListener("job-state:update", ({ target, detail: { job } }) => {
    const known = rows.find(({ row }) => row.contains(target));
    if (!known) return;
    const attempts = job.counts ? "" : format("NumberFormat", {}, job.attempt ?? 0);
    const cell = known.row.querySelector(".jobstate-number");
    const isNewTry = cell.textContent !== attempts;
    cell.textContent = attempts;
    if (known.status === job.status && !isNewTry) return;
    known.status = job.status;
    // It was that of an earlier try.
    known.row.querySelector(".jobstate-reason")?.remove();
    showEnd(known.row.querySelector(".jobstate-ended"), job.finished_at);
    known.acts = actsOn(job, known.permitted);
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

/** What may be done with a job by now, of what the viewer may do with it at all. */
function actsOn({ status, cancellable }, permitted) {
  const fitting = {
    cancel: cancellable && status !== "cancelling",
    rerun: status === "error",
    delete: isOver(status),
  };
  return permitted.filter((act) => fitting[act]);
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
      const { act } = button.dataset;
      button.disabled = matching.checked ? !data.bulk[act] : !chosen(act).length;
      if (!button.disabled) button.hidden = false;
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
        askAboutAll(act, verb, data.bulk[act]);
      } else {
        askAboutEach(act, verb, chosen(act).map(({ url }) => url));
      }
    });
  }
  refresh();
  return refresh;
}

function prepareLook() {
  one("new").addEventListener("click", () => location.reload());
  // Rows get further times when their jobs end.
  const times = [...page.querySelectorAll("tbody time")].map(({ dateTime }) => Date.parse(dateTime));
  const last = Math.max(...times);
  let isLooking = false;
  const timer = setInterval(async () => {
    if (document.hidden || dialog.open || isLooking) return;
    isLooking = true;
    const [answer, told] = await Promise.all([read(data.first), data.counts && read(data.counts)]);
    isLooking = false;
    if (answer === undefined) clearInterval(timer);
    if (told) showCounts(told.counts);
    if (!answer) return;
    const jobs = answer.items.map(({ job }) => job).filter(Boolean);
    const count = countNew(jobs, last);
    const more = count && count === jobs.length && answer.cursor ? "+" : "";
    one("new").hidden = !count;
    if (count) one("new").textContent = plural("new", count, more);
  }, LOOK);
}

/**
 * How many new jobs the first page of the list has by now. New jobs are unknown and stand
 * before a known one: unknown ones at the end of the page have only moved up. Running jobs,
 * which stand above the others, may stand anywhere in the list. Without a known one, new is
 * what happened after the last time that this page was loaded with.
 */
function countNew(jobs, last) {
  const [shown, placed] = ["", "tbody:last-child "].map((block) => {
    const rows = [...page.querySelectorAll(`${block}tr[data-uuid]`)];
    const known = new Set(rows.map((row) => row.dataset.uuid));
    return jobs.map(({ uuid }) => known.has(uuid));
  });
  const end = data.more ? placed.lastIndexOf(true) : jobs.length;
  if (end >= 0) return shown.slice(0, end).filter((each) => !each).length;
  const isNew = ({ queued_at, started_at, finished_at }) =>
    [queued_at, started_at, finished_at].some((time) => Date.parse(time) > last);
  return jobs.filter(isNew).length;
}

// The groups of failed jobs

function prepareGroups() {
  for (const button of actButtons()) {
    const { act, group, verb } = button.dataset;
    button.hidden = false;
    button.addEventListener("click", () => askAboutEach(act, verb, data.groups[group]));
  }
}

// The page of a job

function prepareJob() {
  // The button that asked may have gone. Then the focus stays in the closed dialog until
  // the page is drawn, and is lost after that.
  dialog.addEventListener("close", () => {
    setTimeout(() => {
      const { activeElement, body } = document;
      const isLost = activeElement === body || dialog.contains(activeElement);
      if (!dialog.open && isLost) focusAgain();
    });
  });
  waitForWorker();
  let shown = data.seen; // what the parts around the element show
  page.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-act], [data-jobstate=ask-where]");
    if (!button) return;
    if (!button.dataset.act) {
      askWhere(button);
      return;
    }
    const { act, question, verb } = button.dataset;
    if (data.bulk[act]) {
      askAboutAll(act, verb, data.bulk[act]);
      return;
    }
    ask({
      verb: button.textContent,
      name: act,
      number: 1,
      prepare: () => question,
      act: (result, tell) => actOnEach(act, [data.url], result, tell),
      next: act === "delete" ? data.list : null,
    });
  });
  page.addEventListener("job-state:update", ({ target, detail }) => {
    // The page of a batch has elements of its jobs, too.
    if (target.id !== "jobstate-job") return;
    placeMetrics(detail);
    const { status, attempt, counts } = detail.job;
    if (counts) showCounts(counts);
    const seen = `${status} ${attempt}${counts?.error ? " failed" : ""}`;
    if (seen !== shown) renew(isOver(status));
    shown = seen;
  });
  showNewest();
  setInterval(() => {
    // Its last lines come with the end of the job.
    if (one("lines") && !document.hidden && !isOver(shown.split(" ")[0])) readLog();
  }, LOG_LOOK);
}

let isReading = false; // lines of the log are on their way

/** Add what the job has logged since the last line that the page has. */
async function readLog() {
  if (isReading) return;
  isReading = true;
  const after = one("lines").lastElementChild?.dataset.number ?? 0;
  const found = await read(`${data.url}log?after=${after}`);
  if (found) addLines(found.lines);
  // Once the server refuses, it is not asked again.
  isReading = found === undefined;
}

function addLines(lines) {
  const list = one("lines");
  const box = list.parentNode;
  const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
  for (const { number, time, level, logger, text } of lines) {
    // The server may have sent the whole list meanwhile.
    if (number <= Number(list.lastElementChild?.dataset.number ?? 0)) continue;
    const moment = make("time", { dateTime: time });
    showLocally(moment);
    const words = level === null ? [" "] : [" ", make("b", { title: logger }, level), " "];
    const line = make("li", {}, moment, ...words, make("span", { dir: "auto" }, text));
    line.dataset.number = number;
    list.append(line);
  }
  while (list.children.length > MOST_LINES) list.firstElementChild.remove();
  if (list.children.length) one("log").hidden = false;
  if (isAtEnd) showNewest();
}

/** Show the newest lines of the log. */
function showNewest() {
  const box = one("lines")?.parentNode;
  if (box) box.scrollTop = box.scrollHeight;
}

/** Ask the worker of the job where it is. */
async function askWhere(button) {
  let next = button; // what gets the focus, which a disabled button loses
  button.disabled = true;
  try {
    await sendOne("stack", data.url);
    renew(false);
  } catch (refusal) {
    next = one("said");
    next.textContent = refusal.text;
  }
  button.disabled = false;
  next.focus();
}

/** Look again while the worker may answer. */
function waitForWorker() {
  if (one("where")?.querySelector("[data-waits]")) setTimeout(renew, ANSWER, false);
}

/** Show how many jobs of the list, or of the batch, have which status. */
function showCounts(counts) {
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  const numbers = { ...counts, all: total };
  for (const node of page.querySelectorAll("[data-count]")) {
    node.textContent = format("NumberFormat", {}, numbers[node.dataset.count]);
  }
  const button = page.querySelector("[data-act=rerun][data-verb]");
  if (button && counts.error) button.textContent = plural("rerun-failed", counts.error);
}

/** The newest request for what has changed around the element. */
let newest;

/** Show the acts, the timeline and the failure as the server has them by now. */
function renew(hasEnded, tries = 5) {
  // This parses HTML even where a policy requires trusted types, unlike DOMParser.
  const request = (newest = new XMLHttpRequest());
  request.open("GET", location.href);
  request.responseType = "document";
  request.setRequestHeader("Accept", "text/html");
  // Without the layout, which may have styles that the policy admits in this page alone.
  request.setRequestHeader("X-Requested-With", "XMLHttpRequest");
  request.timeout = TIMEOUT;
  request.onloadend = () => {
    if (request !== newest) return;
    const found = request.response?.querySelector('[data-jobstate="page"]');
    if (found) replaceParts(found, hasEnded);
    else if (tries > 1 && (!request.status || request.status === 429 || request.status >= 500)) {
      setTimeout(renew, LOOK, hasEnded, tries - 1);
    }
  };
  request.send();
}

function replaceParts(found, hasEnded) {
  for (const [name, before] of sent) {
    const [old, now] = [page, found].map((each) => each.querySelector(`[data-jobstate="${name}"]`));
    if (!now) {
      // While a job runs, the failure of its last try stays.
      if (hasEnded || old?.querySelector("[data-waits]")) old?.remove();
      continue;
    }
    // What the viewer has opened there stays open.
    if (old && before?.isEqualNode(now)) continue;
    sent.set(name, now.cloneNode(true));
    now.querySelectorAll("time").forEach(showLocally);
    prepareCopies(now);
    if (name === "acts") now.hidden = false;
    const hadFocus = old?.contains(document.activeElement);
    if (old) old.replaceWith(now);
    else document.getElementById("jobstate-job").after(now);
    if (name === "log") showNewest();
    if (hadFocus) focusAgain();
  }
  waitForWorker();
}

/** Focus what a viewer may want to do next, where the focus would be lost. */
function focusAgain() {
  const title = page.querySelector("h1");
  title.tabIndex = -1;
  (one("acts").querySelector("button:enabled") || title).focus();
}

/** Give each metric that the job has by now a place, and take that of all others away. */
function placeMetrics(state) {
  const names = Object.keys(state).filter((name) => name !== "job" && name !== "job_state");
  const nodes = [...page.querySelectorAll("[data-metric]")];
  for (const node of nodes.filter(({ dataset }) => !names.includes(dataset.metric))) {
    node.parentNode.remove();
  }
  if (nodes.length && !page.querySelector("[data-metric]")) one("metrics").remove();
  const known = nodes.map((node) => node.dataset.metric);
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
  one("timeline").after(section);
  return section;
}

function make(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/**
 * A text that does not act on a terminal that it is pasted into: as `pjobs` shows it, but with
 * its tabs and ends of lines.
 */
function harmless(text) {
  return text.replace(UNSAFE, (character) => {
    const code = character.codePointAt(0);
    const [letter, length] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${letter}${code.toString(16).padStart(length, "0")}`;
  });
}

/** Keep what the viewer copies from acting on a terminal. */
function copyHarmlessly(event) {
  const selection = getSelection();
  const text = selection.toString();
  const copied = harmless(text);
  // What the application has around the page is its own.
  if (copied === text || !selection.containsNode(page, true)) return;
  event.clipboardData.setData("text/plain", copied);
  event.preventDefault();
}

/** Show the buttons that copy a part of the page, each the one that it names. */
function prepareCopies(root) {
  if (!navigator.clipboard) return;
  for (const button of root.querySelectorAll("[data-copies]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
}

async function copy(button) {
  const source = one(button.dataset.copies);
  // Leave out the headings of folded frames.
  const parts = [...source.querySelectorAll("pre")];
  const text = (parts.length ? parts : [source]).map((part) => part.textContent).join("");
  try {
    await navigator.clipboard.writeText(harmless(text));
    button.textContent = button.dataset.copied;
  } catch {
    // The browser does not let this page copy.
    for (const details of source.querySelectorAll("details")) details.open = true;
    getSelection().selectAllChildren(source);
  }
}
})();
