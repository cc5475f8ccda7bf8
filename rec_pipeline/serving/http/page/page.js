"use strict";

const byId = (id) => document.getElementById(id);
const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const SOURCE_NAMES = { collaborative: "similar users", content: "similar text", sequence: "what comes next", trending: "popular now", popularity: "popular" };
const ORIGINS = { cache: "ready-made", generated: "made just now", popular: "the popular list", snapshot: "local snapshot" };

let user = null; // id, or null for somebody new
let taste = ""; // words of somebody new
let session = []; // what somebody new clicked
let shown = []; // ids of the list on the page
let shownAnswer = null;
let asked = 0; // only the last question may write on the page
const ENCODER_TRIES = 20; // the first words wait until the text encoder is loaded
const ENCODER_PAUSE = 1500;

async function call(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (response.status === 401) {
    const given = window.prompt("This service asks for a token.");
    if (given) {
      sessionStorage.setItem("token", given);
      return call(path, body);
    }
  }
  const document_ = await response.json();
  if (!response.ok) throw new Error(document_.detail || response.statusText);
  return document_;
}

function say(text, isBad) {
  const message = byId("message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("bad", Boolean(isBad));
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

async function showFacts() {
  const status = await call("/status");
  const facts = [
    ["generation", status.generation || "none yet"],
    ["published", status.published_at ? `${duration(status.age_s)} ago` : "never"],
    ["users", status.n_users.toLocaleString("en")],
    ["items", status.n_items.toLocaleString("en")],
    ["store", status.store, status.store !== "ok"],
  ];
  byId("facts").replaceChildren(
    ...facts.map(([name, value, isBad]) => {
      const pair = element("div");
      pair.append(element("dt", "", name), element("dd", isBad ? "bad" : "", String(value)));
      return pair;
    }),
  );
  return status;
}

function showPicks(users) {
  byId("users").replaceChildren(...users.map((id) => Object.assign(element("option"), { value: id })));
  byId("picks").replaceChildren(
    ...users.slice(0, 7).map((id) => {
      const button = element("button", "", id);
      button.type = "button";
      button.addEventListener("click", () => chooseUser(id));
      return button;
    }),
  );
}

function showQuality(metrics) {
  if (!metrics.length) return;
  const names = [...new Set(metrics.map((entry) => entry.metric))];
  const rows = [...new Set(metrics.map((entry) => entry.recommender))];
  const value = (recommender, metric) => metrics.find((e) => e.recommender === recommender && e.metric === metric);
  const head = element("tr");
  head.append(element("th", "", "recommender"), ...names.map((name) => element("th", "", name)));
  document.querySelector("#quality thead").replaceChildren(head);
  document.querySelector("#quality tbody").replaceChildren(
    ...rows.map((recommender) => {
      const row = element("tr");
      const cells = names.map((name) => element("td", "", value(recommender, name) ? value(recommender, name).mean.toFixed(3) : ""));
      row.append(element("td", "", recommender), ...cells);
      return row;
    }),
  );
  byId("quality").hidden = false;
}

function card(item, place) {
  const line = element("li", shown.length && !shown.includes(item.id) ? "moved" : "");
  line.dataset.id = item.id;
  const why = element("div", "why");
  why.append(element("span", "reason", item.reason));
  for (const source of item.sources) why.append(element("span", `tag ${source}`, SOURCE_NAMES[source] || source));
  const click = element("button", "", "Click");
  click.setAttribute("aria-label", `Click ${item.title} as this user`);
  click.addEventListener("click", () => clickItem(item, place));
  line.append(element("span", "place", place), element("span", "title", item.title), click, why);
  return line;
}

function showList(answer) {
  byId("list").replaceChildren(...answer.items.map((item, index) => card(item, index + 1)));
  byId("list-hint").hidden = answer.items.length > 0;
  byId("list-hint").textContent = "Nothing is left to recommend.";
  const parts = [ORIGINS[answer.source] || answer.source];
  if (answer.generation) parts.push(`generation ${answer.generation}`);
  if (answer.age_s >= 1) parts.push(`${duration(answer.age_s)} old`);
  byId("origin").textContent = parts.join(" · ");
  shown = answer.items.map((item) => item.id);
  shownAnswer = answer;
  if (answer.degraded) say(`Degraded: ${answer.reason}`, true);
}

function showHistory(items, note) {
  byId("history").replaceChildren(
    ...items.slice(0, 15).map((item) => {
      const line = element("li");
      line.append(element(item.is_live ? "b" : "span", "", item.title));
      if (item.is_live) line.append(element("span", "now", item.age_s < 60 ? "just now" : `${duration(item.age_s)} ago`));
      return line;
    }),
  );
  byId("history-hint").hidden = items.length > 0;
  byId("history-hint").textContent = user === null ? "Nothing clicked yet." : "Nothing is known of this user.";
  byId("known").textContent = note;
}

async function refresh(tries = ENCODER_TRIES) {
  const question = ++asked;
  try {
    if (user === null) {
      const answer = await call("/recommendations", { items: session.map((item) => item.id), text: taste, top_k: 10 });
      if (question !== asked) return;
      if (answer.left_out.content && answer.left_out.content.startsWith("late") && tries) {
        setTimeout(() => question === asked && refresh(tries - 1), ENCODER_PAUSE);
        return;
      }
      say("");
      showList(answer);
      showHistory([...session].reverse().map((item) => ({ ...item, is_live: true, age_s: 0 })), "this session");
      return;
    }
    const path = encodeURIComponent(user);
    const [answer, history] = await Promise.all([call(`/recommendations/${path}?top_k=10`), call(`/users/${path}/history`)]);
    if (question !== asked) return;
    say("");
    showList(answer);
    showHistory(history.items, history.is_known ? "" : "new to the models");
  } catch (error) {
    if (question === asked) say(error.message, true);
  }
}

async function chooseUser(id) {
  user = id;
  taste = "";
  session = [];
  shown = [];
  byId("user").value = id;
  byId("taste").value = "";
  for (const button of byId("picks").children) button.setAttribute("aria-pressed", button.textContent === id);
  byId("list-title").textContent = `Recommendations for ${id}`;
  await refresh();
}

async function chooseTaste(words) {
  user = null;
  taste = words;
  session = [];
  shown = [];
  byId("user").value = "";
  for (const button of byId("picks").children) button.setAttribute("aria-pressed", "false");
  byId("list-title").textContent = "Recommendations for somebody new";
  byId("list").replaceChildren();
  byId("history").replaceChildren();
  byId("list-hint").hidden = true;
  byId("origin").textContent = "";
  say("Reading the words; the first time takes a moment …");
  await refresh();
}

async function clickItem(item, position) {
  if (user === null) {
    session.push(item);
    await refresh();
    return;
  }
  const served = { sources: item.sources, position, experiment: shownAnswer.experiment, variant: shownAnswer.variant };
  if (shownAnswer.generation) served.generation = shownAnswer.generation;
  try {
    await call("/events", { user_id: user, item_id: item.id, event_type: "click", served });
  } catch (error) {
    say(error.message, true);
    return;
  }
  await refresh();
}

byId("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  chooseUser(byId("user").value.trim());
});
byId("taste-form").addEventListener("submit", (event) => {
  event.preventDefault();
  chooseTaste(byId("taste").value.trim());
});

showFacts()
  .then((status) => {
    showPicks(status.some_users);
    showQuality(status.metrics);
  })
  .catch((error) => say(error.message, true));
setInterval(() => showFacts().catch((error) => say(error.message, true)), 5000);
