// SPDX-License-Identifier: Apache-2.0

// The page of hairpin's status. All text from the router becomes text nodes, never HTML.
"use strict";

const EVERY = 2000; // ms between two questions
const PATIENCE = 10000;
const ROWS = 100;

const $ = (id) => document.getElementById(id);

// make returns an element. Children are elements or texts; null is left out.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  return fill(element, attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/* numbers */

const whole = new Intl.NumberFormat("en");

function scaled(value, step, units) {
  let unit = 0;
  while (value >= step && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  const digits = unit > 0 && value < 10 ? 1 : 0;
  return value.toFixed(digits) + " " + units[unit];
}

const bitRate = (bytes) => scaled(bytes * 8, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]);
const size = (bytes) => scaled(bytes, 1000, ["B", "kB", "MB", "GB", "TB", "PB"]);

function perSecond(value) {
  if (value <= 0) return "";
  return (value < 10 ? value.toFixed(1) : whole.format(Math.round(value))) + "/s";
}

function ago(seconds) {
  if (seconds < 60) return Math.round(seconds) + " s ago";
  if (seconds < 3600) return Math.round(seconds / 60) + " min ago";
  if (seconds < 172800) return Math.round(seconds / 3600) + " h ago";
  return Math.round(seconds / 86400) + " days ago";
}

const plural = (count, one, many) => whole.format(count) + " " + (count === 1 ? one : many);

/* the picture */

const GAP = 12;
const HIGH = 68;
const STATES = { attached: "", detached: "not attached", pending: "absent" };

// shorten cuts a text to a width in pixels; a character of the page's font takes about this much.
function shorten(text, width, character = 7.3) {
  const room = Math.max(4, Math.floor(width / character));
  return text.length <= room ? text : text.slice(0, room - 1) + "\u2026";
}

// box draws a node: a name, and up to two lines below.
function box(node) {
  const { x, y, width } = node;
  const lines = node.lines.filter((line) => line !== "").slice(0, 2);
  const top = y + HIGH / 2 - lines.length * 8.5 + 5;
  const group = draw("g", { class: node.kind + (node.absent ? " absent" : "") },
    draw("title", {}, [node.name, ...node.lines].filter((line) => line !== "").join("\n")),
    draw("rect", { class: "box", x, y, width, height: HIGH, rx: 10 }),
    draw("text", { class: "name", x: x + 14, y: top }, shorten(node.name, width - 28, 8)));
  lines.forEach((line, i) => group.append(draw("text", { class: "small", x: x + 14, y: top + 17 * (i + 1) }, shorten(line, width - 28, 6.8))));
  return group;
}

// thick is the width of a line with this traffic: one pixel more for every factor of ten from 100 kbit/s on.
const thick = (bytes) => 2 + Math.min(4, Math.max(0, Math.log10(bytes / 12500)));

function edge(path, node) {
  const kind = node.absent ? " gone" : node.bytes > 0 ? " busy" : "";
  return draw("path", { class: "edge" + kind, d: path, "stroke-width": thick(node.bytes).toFixed(1) });
}

// nodes returns what the picture shows: uplinks, the router, LANs, each with its targets.
function nodes(status) {
  const total = status.forwards.bytes_per_second;
  const port = (kind) => (p) => ({
    kind, name: p.name, absent: p.state !== "attached", bytes: 0,
    lines: [p.state === "attached" ? p.addresses[0] || "no address" : STATES[p.state] || p.state,
      p.addresses.length > 1 && p.state === "attached" ? "and " + plural(p.addresses.length - 1, "address more", "addresses more") : ""],
  });
  const wans = status.interfaces.filter((p) => p.role === "wan").map(port("wan"));
  const lans = status.interfaces.filter((p) => p.role === "lan").map(port("lan"));
  // How several uplinks share the traffic is not known: each then gets a thin line.
  const outside = status.forwards.wan_bytes_per_second;
  const used = wans.filter((wan) => !wan.absent);
  for (const wan of used) wan.bytes = used.length === 1 ? outside : Math.min(outside, 1);
  for (const lan of lans) lan.targets = [];
  const elsewhere = { kind: "lan", name: "other networks", lines: ["by a route of the router"], bytes: 0, targets: [] };
  for (const target of status.targets) {
    const lan = lans.find((l) => l.name === target.interface) || elsewhere;
    const names = target.names.join(", ") + (target.forwards > target.names.length ? " and " + whole.format(target.forwards - target.names.length) + " more" : "");
    lan.bytes += target.bytes_per_second;
    lan.targets.push({
      kind: "target", name: target.address, bytes: target.bytes_per_second,
      lines: [names, plural(target.connections, "connection", "connections") + (target.bytes_per_second > 0 ? ", " + bitRate(target.bytes_per_second) : "")],
    });
  }
  if (elsewhere.targets.length > 0) lans.push(elsewhere);
  return {
    internet: { kind: "internet", name: "Internet", lines: [], bytes: outside },
    wans, lans,
    router: { kind: "router", name: "This router", lines: [plural(status.forwards.total, "forward", "forwards"), total > 0 ? bitRate(total) : "no traffic"], bytes: total },
  };
}

// column places nodes below each other, around the middle of the picture.
function column(list, x, width, height) {
  let y = (height - list.length * (HIGH + GAP) + GAP) / 2;
  for (const node of list) {
    Object.assign(node, { x, y, width });
    y += HIGH + GAP;
  }
}

const across = (a, b) => {
  const from = a.x + a.width, to = b.x, middle = (from + to) / 2;
  const y1 = a.y + HIGH / 2, y2 = b.y + HIGH / 2;
  return `M${from} ${y1}C${middle} ${y1} ${middle} ${y2} ${to} ${y2}`;
};

// wide draws from left to right: Internet, uplinks, router, LANs, targets.
function wide(net, width) {
  const targets = net.lans.flatMap((lan) => lan.targets);
  const tall = Math.max(1, net.wans.length, net.lans.length, targets.length);
  const height = tall * (HIGH + GAP) - GAP + 4;
  const gap = width * 0.045;
  const unit = (width - 4 - 4 * gap) / 100;
  let x = 2;
  for (const [list, share] of [[[net.internet], 13], [net.wans, 21], [[net.router], 17], [net.lans, 20], [targets, 29]]) {
    column(list, x, unit * share, height);
    x += unit * share + gap;
  }
  const edges = [];
  for (const wan of net.wans) edges.push(edge(across(net.internet, wan), wan), edge(across(wan, net.router), wan));
  for (const lan of net.lans) {
    edges.push(edge(across(net.router, lan), lan));
    for (const target of lan.targets) edges.push(edge(across(lan, target), target));
  }
  return { height, parts: [...edges, ...[net.internet, ...net.wans, net.router, ...net.lans, ...targets].map(box)] };
}

// narrow draws from top to bottom, and the targets of each LAN below it.
function narrow(net, width) {
  const inner = width - 4, step = HIGH + 22, indent = 28;
  const edges = [], boxes = [];
  let y = 2;
  const row = (list) => {
    const each = (inner - (list.length - 1) * GAP) / Math.max(1, list.length);
    list.forEach((node, i) => Object.assign(node, { x: 2 + i * (each + GAP), y, width: each }));
    boxes.push(...list);
    y += step;
  };
  const down = (a, b) => {
    const x1 = a.x + a.width / 2, x2 = b.x + b.width / 2, y1 = a.y + HIGH, middle = (y1 + b.y) / 2;
    return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${b.y}`;
  };
  row([net.internet]);
  let above = net.internet;
  const rows = [];
  for (let i = 0; i < net.wans.length; i += 2) rows.push(net.wans.slice(i, i + 2));
  for (const wans of rows) {
    row(wans);
    for (const wan of wans) edges.push(edge(down(above, wan), wan));
  }
  row([net.router]);
  for (const wan of rows.at(-1) || []) edges.push(edge(down(wan, net.router), wan));
  // A rail on the left leads from the router to each LAN, and from each LAN to its targets.
  const rail = (from, to) => `M${from.x + 14} ${from.y + HIGH}V${to.y + HIGH / 2}H${to.x}`;
  const place = (node, x) => {
    Object.assign(node, { x, y, width: inner - x + 2 });
    boxes.push(node);
    y += HIGH + GAP;
  };
  y -= 22 - GAP;
  for (const lan of net.lans) {
    place(lan, 2 + indent);
    edges.unshift(edge(rail(net.router, lan), lan));
    for (const target of lan.targets) {
      place(target, 2 + 2 * indent);
      edges.unshift(edge(rail(lan, target), target));
    }
  }
  return { height: y - GAP + 2, parts: [...edges, ...boxes.map(box)] };
}

function showNetwork(status) {
  const home = $("network");
  const style = getComputedStyle(home);
  const width = Math.max(240, home.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  const net = nodes(status);
  const picture = width < 700 ? narrow(net, width) : wide(net, width);
  const words = [
    "Uplinks: " + (net.wans.map((n) => n.name + ", " + n.lines[0]).join("; ") || "none") + ".",
    "LANs: " + (net.lans.map((n) => n.name + ", " + n.lines[0] + ", with " + plural(n.targets.length, "target", "targets")).join("; ") || "none") + ".",
  ];
  const svg = draw("svg", { role: "img", "aria-labelledby": "picture-title picture-text", viewBox: `0 0 ${width} ${picture.height}`, height: picture.height },
    draw("title", { id: "picture-title" }, "The Internet, this router, its networks and the targets of its forwards"),
    draw("desc", { id: "picture-text" }, words.join(" ")), ...picture.parts);
  const more = status.more_targets > 0 ? make("p", { class: "quiet" }, "The busiest targets; " + plural(status.more_targets, "more target is", "more targets are") + " not shown.") : null;
  home.replaceChildren(...[svg, more].filter((part) => part !== null));
}

/* the tables */

const cell = (label, number, ...children) => make("td", { role: "cell", "data-label": label, class: number ? "number" : null }, ...children);
const row = (...cells) => make("tr", { role: "row" }, ...cells);

function showInterfaces(list) {
  $("interfaces").replaceChildren(...list.map((p) => row(
    cell(null, false, make("strong", {}, p.name)), cell("Side", false, p.role.toUpperCase()), cell("State", false, p.state),
    cell("Mode", false, p.mode || "\u2013"), cell("Addresses", false, p.addresses.join(", ") || "\u2013"))));
}

function outside(f) {
  const where = f.external === "any" ? "any address" : f.external === "" ? "every uplink" : f.external;
  return [make("strong", {}, f.port === "any" ? "every port" : "port " + f.port), make("span", { class: "quiet" }, f.protocol.join(", ") + ", " + where)];
}

function showForwards(status) {
  const forwards = status.forwards;
  const first = status.rates_over_seconds === 0;
  $("list").replaceChildren(...forwards.list.map((f) => row(
    cell(null, false, make("strong", {}, f.name), f.state === "enabled" ? null : make("span", { class: "tag" }, f.state),
      f.comment ? make("span", { class: "quiet" }, f.comment) : null,
      f.hosts ? make("span", { class: "quiet" }, f.hosts.join(", ")) : null),
    cell("From outside", false, ...outside(f)),
    cell("To", false, f.target),
    cell("Connections", true, whole.format(f.connections), make("span", { class: "quiet" }, perSecond(f.connections_per_second))),
    cell("Rate", true, first || f.bytes_per_second === 0 ? "\u2013" : make("span", { class: "busy-rate" }, bitRate(f.bytes_per_second))),
    cell("Total", true, size(f.bytes), make("span", { class: "quiet" }, f.last_hit_seconds === undefined ? "no packet yet" : ago(f.last_hit_seconds))),
    cell("Refused", true, whole.format(f.refused)))));
  let text = "No forward matches.";
  if (forwards.total === 0) text = "There are no forwards yet. \u201chairpin forward add\u201d makes one.";
  else if (forwards.list.length < forwards.matching) text = "The " + whole.format(forwards.list.length) + " busiest of " + plural(forwards.matching, "forward", "forwards");
  else if (forwards.matching > 0) text = plural(forwards.matching, "forward", "forwards");
  if (forwards.matching > 0 && forwards.matching < forwards.total) text += ", filtered from " + whole.format(forwards.total);
  if ($("matching").textContent !== text) $("matching").textContent = text;
}

function figure(name, value, ...more) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, value, ...more));
}

function showFigures(status) {
  const c = status.connections;
  const share = c.limit > 0 ? c.established / c.limit : 0;
  // TCP may use three quarters of the table.
  const meter = make("meter", { min: 0, max: 1, low: 0.6, high: 0.7, optimum: 0, value: share.toFixed(3), "aria-label": "share of the connection table in use" });
  $("figures").replaceChildren(
    figure("Established", whole.format(c.established), make("span", { class: "quiet" }, " of " + whole.format(c.limit)), meter),
    figure("Half-open", whole.format(c.half_open)),
    figure("Closing", whole.format(c.closing)),
    figure("Traffic", status.rates_over_seconds === 0 ? "\u2013" : bitRate(status.forwards.bytes_per_second)));
}

function showDropped(status) {
  const rows = status.dropped.map((d) => row(
    cell(null, false, make("strong", {}, d.reason.replaceAll("_", " ")), make("span", { class: "tag" }, d.refused ? "refused" : "dropped"),
      d.meaning ? make("span", { class: "quiet" }, d.meaning) : null),
    cell("Packets", true, whole.format(d.packets)), cell("Now", true, perSecond(d.packets_per_second) || "\u2013")));
  if (rows.length === 0) rows.push(row(make("td", { role: "cell", colspan: 3, class: "quiet" }, "Nothing was refused or dropped.")));
  $("dropped").replaceChildren(...rows);
}

/* the doctor */

function finding(f) {
  let about = f.text;
  if (f.forward) about = "Forward " + f.forward + (f.more_forwards ? " and " + whole.format(f.more_forwards) + " more" : "") + ": " + f.text;
  else if (f.interface) about = f.interface + ": " + f.text;
  let cure = null;
  if (f.cure) cure = make("p", { class: "cure" }, "Cure: ", f.cure_is_command ? make("code", {}, f.cure) : f.cure);
  return make("li", {}, make("span", { class: "level " + f.level }, f.level), about, cure);
}

let shownFindings = "";

// showDoctor leaves the list alone while it is the same, so that a reader's open details stay open.
function showDoctor(found) {
  if (found === null) return;
  const now = JSON.stringify([found.error, found.list]);
  if (now === shownFindings) return;
  shownFindings = now;
  const bad = found.list.filter((f) => f.level !== "ok"), good = found.list.filter((f) => f.level === "ok");
  const parts = [];
  if (found.error) parts.push(make("p", { class: "quiet" }, "hairpin could not look at everything: " + found.error));
  else if (bad.length === 0) parts.push(make("p", {}, "Nothing is wrong."));
  if (bad.length > 0) parts.push(make("ul", {}, ...bad.map(finding)));
  if (good.length > 0) parts.push(make("details", {}, make("summary", {}, plural(good.length, "check is", "checks are") + " fine"), make("ul", {}, ...good.map(finding))));
  $("doctor").replaceChildren(...parts);
}

function showHealth(status) {
  const found = status.findings;
  const away = status.interfaces.filter((p) => p.state !== "attached").length;
  const notes = [];
  let level = "good", text = "Working";
  if (found && found.warnings > 0) [level, text] = ["warn", plural(found.warnings, "warning", "warnings")];
  if (status.files_do_not_run) {
    [level, text] = ["warn", "Files do not run"];
    notes.push(make("p", { class: "note" }, status.files_do_not_run));
  }
  if (found && found.problems > 0) [level, text] = ["bad", plural(found.problems, "problem", "problems")];
  if (away > 0) [level, text] = ["bad", plural(away, "interface is", "interfaces are") + " not attached"];
  tell(level, text, notes);
}

function tell(level, text, notes) {
  $("health").className = "pill " + level;
  if ($("health").textContent !== text) $("health").textContent = text;
  if ($("notes").textContent !== notes.map((note) => note.textContent).join("")) $("notes").replaceChildren(...notes);
}

/* the questions */

let timer = 0, asking = null, latest = null;

function show(status) {
  latest = status;
  showHealth(status);
  showNetwork(status);
  showInterfaces(status.interfaces);
  showFigures(status);
  showForwards(status);
  showDropped(status);
  showDoctor(status.findings);
  $("updated").textContent = "Updated " + new Date(status.time).toLocaleTimeString();
  $("version").textContent = "hairpin " + status.version + ". This page only reads; it changes nothing.";
}

async function ask() {
  clearTimeout(timer);
  if (asking) asking.abort();
  const mine = (asking = new AbortController());
  const late = setTimeout(() => mine.abort(), PATIENCE);
  let next = EVERY;
  try {
    const filter = $("filter").value.trim();
    const response = await fetch("/api/v1/status?limit=" + ROWS + (filter ? "&filter=" + encodeURIComponent(filter) : ""),
      { signal: mine.signal, cache: "no-store", credentials: "same-origin" });
    if (!response.ok) throw new Error((await response.text()).slice(0, 200));
    const answer = await response.json();
    if (mine !== asking) return;
    if (answer.schema !== 1) throw new Error("this page is older than the daemon; load it again");
    if (answer.status.rates_over_seconds === 0) next = EVERY / 2;
    show(answer.status);
  } catch (error) {
    if (mine !== asking) return;
    tell("bad", "No answer", [make("p", { class: "note bad" }, "The daemon does not answer. Forwards keep working without it. ", String(error.message || error))]);
  } finally {
    clearTimeout(late);
    if (mine === asking && !document.hidden) timer = setTimeout(ask, next);
  }
}

let typing = 0;
$("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(ask, 250);
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));

let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => latest && showNetwork(latest), 100);
});

for (const table of document.querySelectorAll("table")) {
  // CSS shows tables as blocks on a phone; the roles keep them tables for screen readers.
  table.setAttribute("role", "table");
  for (const part of table.querySelectorAll("thead, tbody")) part.setAttribute("role", "rowgroup");
  for (const line of table.querySelectorAll("tr")) line.setAttribute("role", "row");
  for (const head of table.querySelectorAll("th")) head.setAttribute("role", "columnheader");
}
ask();
