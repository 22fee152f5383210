// Draws the figures; colours that depend on light or dark come from the page's style.
const Page = (function () {
  "use strict";
  const config = { displayModeBar: false, responsive: true };
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  // Plotly reads a subset of HTML in names and hover texts.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // Return a copy with the style's values in place of "var(--name)".
  function coloured(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[a-z]+)\)$/.exec(value);
      return name === null ? value : style.getPropertyValue(name[1]).trim();
    }
    if (Array.isArray(value)) return value.map((v) => coloured(v, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
  }

  function plot(target, traces, layout) {
    const style = getComputedStyle(document.documentElement);
    Plotly.react(target, coloured(traces, style), coloured(layout, style), config);
  }

  const drawings = [];
  // Draw now, and again when the reader's scheme changes.
  function keepDrawn(draw) {
    drawings.push(draw);
    draw();
  }
  scheme.addEventListener("change", () => drawings.forEach((draw) => draw()));

  // Drawn when the reader comes near, so that a long page opens quickly. What is hidden has no
  // width and is not met before it is shown.
  const figures = read("figures");
  const seen = new IntersectionObserver((met) => met.filter((m) => m.isIntersecting).forEach(({ target }) => {
    seen.unobserve(target);
    const figure = figures[target.id.slice("figure-".length)];
    keepDrawn(() => plot(target, figure.data, figure.layout));
  }), { rootMargin: "600px" });
  for (const name of Object.keys(figures)) seen.observe(document.getElementById("figure-" + name));
  return { keepDrawn, plain, plot, read };
})();
