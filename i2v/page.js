"use strict";
// Tables sort by a click on their heads, and show the rows that hold what is typed.
for (const head of document.querySelectorAll("th[data-sort]")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const down = head.classList.contains("up"), numbers = head.dataset.sort === "n";
  for (const other of table.querySelectorAll("th")) other.classList.remove("up", "down");
  head.classList.add(down ? "down" : "up");
  const value = row => { const cell = row.cells[column]; return numbers ? parseFloat(cell.dataset.v ?? cell.textContent) : cell.textContent; };
  const order = (a, b) => numbers ? (isNaN(a) ? 1 : isNaN(b) ? -1 : down ? b - a : a - b) : (down ? -1 : 1) * a.localeCompare(b);
  const rows = [...body.rows].map(row => [value(row), row]).sort((a, b) => order(a[0], b[0]));
  body.append(...rows.map(pair => pair[1]));
});
for (const box of document.querySelectorAll("input[data-table]")) box.addEventListener("input", () => {
  const wanted = box.value.toLowerCase();
  for (const row of document.getElementById(box.dataset.table).tBodies[0].rows)
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
});

// The confusion matrix is drawn from the videos: rows are labels, columns guesses. A click shows the videos of a cell.
const data = JSON.parse(document.getElementById("data").textContent);
const make = (tag, text, name) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (name) e.className = name; return e; };
const percent = x => (100 * x).toFixed(1) + " %";
const SHOWN = 100;

function draw(run) {
  const K = run.classes.length, few = K <= 30, room = few ? 130 : 0;
  const cell = Math.max(2, Math.min(34, Math.floor(640 / K))), size = room + K * cell;
  const counts = new Map(), totals = new Array(K).fill(0);
  for (const [label, guess] of run.videos) { const at = label * K + guess; counts.set(at, (counts.get(at) || 0) + 1); totals[label]++; }
  const parts = [`<svg width="${size}" height="${size}" viewBox="0 0 ${size} ${size}" role="img" aria-label="confusion matrix">`];
  parts.push(`<rect x="${room}" y="${room}" width="${K * cell}" height="${K * cell}" fill="#f5f7fa"/>`);
  for (const [at, count] of counts) {
    const i = Math.floor(at / K), j = at % K, share = count / totals[i];
    parts.push(`<rect data-i="${i}" data-j="${j}" data-n="${count}" x="${room + j * cell}" y="${room + i * cell}" width="${cell - (few ? 1 : 0)}" height="${cell - (few ? 1 : 0)}" fill="${i === j ? "#15803d" : "#b42318"}" fill-opacity="${(few ? 0.12 + 0.88 * Math.sqrt(share) : 0.4 + 0.6 * Math.sqrt(share)).toFixed(2)}"/>`);
  }
  parts.push("</svg>");
  const place = document.getElementById("matrix");
  place.innerHTML = parts.join("");
  if (few) {
    const svg = place.firstChild;
    run.classes.forEach((name, i) => {
      const short = name.length > 18 ? name.slice(0, 17) + "\u2026" : name, middle = room + (i + 0.7) * cell;
      for (const [x, y, turned] of [[room - 6, middle, false], [middle, room - 6, true]]) {
        const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
        text.setAttribute("x", x); text.setAttribute("y", y); text.setAttribute("font-size", "12");
        text.setAttribute("text-anchor", turned ? "start" : "end");
        if (turned) text.setAttribute("transform", `rotate(-60 ${x} ${y})`);
        text.textContent = short;
        svg.append(text);
      }
    });
  }
}

function showCell(run, i, j) {
  const place = document.getElementById("clips");
  const found = run.videos.map((video, at) => [video, at]).filter(([video]) => video[0] === i && video[1] === j).sort((a, b) => b[0][2] - a[0][2]);
  const what = i === j ? `${run.classes[i]}, recognised` : `${run.classes[i]}, taken for ${run.classes[j]}`;
  place.replaceChildren(make("h3", `${what}: ${found.length} ${found.length === 1 ? "video" : "videos"}`));
  for (const [video, at] of found.slice(0, SHOWN)) place.append(clip(run, video, at));
  if (found.length > SHOWN) place.append(make("p", `and ${found.length - SHOWN} more`, "quiet"));
}

function clip(run, video, at) {
  const entry = make("div", undefined, "clip");
  if (run.strips[at]) { const picture = make("img"); picture.src = run.strips[at]; picture.alt = "frames of the clip"; entry.append(picture); }
  entry.append(make("span", `${run.classes[video[0]]}, guessed ${run.classes[video[1]]} with ${percent(video[2])}  `));
  entry.append(make("span", video[3], "quiet path"));
  return entry;
}

if (data.runs.length) {
  const choice = document.getElementById("run");
  let run = data.runs[0];
  const change = () => {
    run = data.runs[choice ? choice.selectedIndex : 0];
    draw(run);
    document.getElementById("clips").replaceChildren();
    const wrong = document.getElementById("wrong-clips");
    wrong.replaceChildren(...run.wrong.map(at => clip(run, run.videos[at], at)));
  };
  if (choice) choice.addEventListener("change", change);
  const place = document.getElementById("matrix"), hint = document.getElementById("hint");
  place.addEventListener("click", event => { const r = event.target.closest("rect[data-i]"); if (r) showCell(run, +r.dataset.i, +r.dataset.j); });
  place.addEventListener("mousemove", event => {
    const r = event.target.closest("rect[data-i]");
    if (r) hint.textContent = `${run.classes[r.dataset.i]} \u2192 ${run.classes[r.dataset.j]}: ${r.dataset.n}`;
  });
  for (const row of document.querySelectorAll("[data-pair]")) row.addEventListener("click", () => {
    const [which, i, j] = row.dataset.pair.split(" ").map(Number);
    if (choice && choice.selectedIndex !== which) { choice.selectedIndex = which; change(); }
    showCell(run, i, j);
    document.getElementById("clips").scrollIntoView();
  });
  change();
}
