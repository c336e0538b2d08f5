// What is wrong with the pages of the site, each looked at in a frame at every width and scheme.
const found = [];
const frame = document.querySelector("iframe");
const channel = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const SCROLLING = ".formula, pre, .md-typeset__scrollwrap";

function look(page, width, scheme) {
  const d = frame.contentDocument, w = frame.contentWindow, root = d.documentElement;
  const say = (what) => found.push([page, width, scheme, what]);
  d.body.setAttribute("data-md-color-scheme", scheme);
  if (root.scrollWidth > root.clientWidth + 1) {
    const runsOut = (e) => e.getBoundingClientRect().right > root.clientWidth + 1;
    const widest = [...d.querySelectorAll("article *")].find((e) => runsOut(e) && !e.closest(SCROLLING));
    say("is " + root.scrollWidth + " wide" + (widest ? ": " + widest.outerHTML.slice(0, 80) : ""));
  }
  for (const m of d.querySelectorAll("article math"))
    if (/\\[a-zA-Z]/.test(m.textContent)) say("shows " + m.textContent.slice(0, 60));
  for (const p of d.querySelectorAll("article p"))
    if (/\$\$|\\\[|\\\(/.test(p.textContent)) say("shows the source " + p.textContent.slice(0, 60));
  for (const box of d.querySelectorAll("article .formula, article pre > code")) {
    const flow = w.getComputedStyle(box).overflowX;
    const scrolls = flow === "auto" || flow === "scroll";
    if (box.scrollWidth > box.clientWidth + 1 && !scrolls) say("cuts " + box.textContent.slice(0, 40));
  }
  const back = light(rgb(w.getComputedStyle(d.body).backgroundColor));
  for (const p of [...d.querySelectorAll("article p, article li, article td")].slice(0, 40)) {
    const ink = light(rgb(w.getComputedStyle(p).color));
    const contrast = (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
    if (contrast < 4.5) return say("has text of contrast " + contrast.toFixed(1));
  }
}

async function all({ pages, widths, schemes }) {
  for (const page of pages)
    for (const width of widths) {
      frame.style.width = width + "px";
      await new Promise((done) => { frame.onload = done; frame.src = "/" + page; });
      await new Promise((done) => setTimeout(done, 30));
      for (const scheme of schemes) look(page, width, scheme);
    }
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify({ looked: pages.length, found });
  document.body.append(out);
}
