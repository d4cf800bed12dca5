// The chart, and a bar when a refresh fails.
(() => {
  "use strict";
  // The server names the steps in its own time zone.
  const numbers = (text) => text.split(",").map(Number);
  const gather = (series) => {
    const accepted = numbers(series.dataset.accepted);
    const waiting = numbers(series.dataset.waiting);
    const rest = numbers(series.dataset.rest);
    // Stacked: the highest bars are drawn first.
    return {
      labels: series.dataset.labels.split("|"),
      titles: series.dataset.titles.split("|"),
      counts: [null, rest, waiting, accepted],
      data: [
        accepted.map((n, i) => i),
        accepted.map((n, i) => n + waiting[i] + rest[i]),
        accepted.map((n, i) => n + waiting[i]),
        accepted,
      ],
    };
  };

  let chart = null;
  let drawn = "";
  let shown = null;
  const draw = () => {
    const plot = document.getElementById("plot");
    const series = document.getElementById("series");
    if (!plot || !series || !window.uPlot) return;
    const { labels, titles, accepted, waiting, rest } = series.dataset;
    const key = [labels, titles, accepted, waiting, rest].join("#");
    if (chart && key === drawn) return;
    shown = gather(series);
    drawn = key;
    if (chart) {
      chart.setData(shown.data);
      return;
    }
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const bars = window.uPlot.paths.bars({ size: [0.72, 56], radius: 0.12 });
    const axis = { stroke: colour("--quiet"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const whole = new Intl.NumberFormat("en");
    const count = (u, n, series, at) => (at == null ? "–" : whole.format(shown.counts[series][at]));
    const stack = (label, fill) => ({ label, fill: colour(fill), stroke: colour(fill), width: 0, paths: bars, points: { show: false }, value: count });
    chart = new window.uPlot({
      width: plot.clientWidth,
      height: 260,
      cursor: { y: false, points: { show: false }, drag: { setScale: false } },
      legend: { markers: { width: 0 } },
      scales: {
        x: { time: false, range: (u, low, high) => [low - 0.5, high + 0.5] },
        y: { range: (u, low, high) => [0, Math.max(4, high * 1.08)] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 64, incrs: [1, 2, 3, 4, 6, 7, 12, 14, 28], values: (u, splits) => splits.map((i) => shown.labels[i] ?? "") },
        { ...axis, grid: { stroke: colour("--line"), width: 1 }, size: 52, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6], values: (u, splits) => splits.map((s) => whole.format(s)) },
      ],
      series: [
        { label: "From", value: (u, i) => (i == null ? "–" : shown.titles[i]) },
        stack("Not accepted", "--missed"),
        stack("Waiting", "--paid"),
        stack("Accepted by TikTok", "--accepted"),
      ],
    }, shown.data, plot);
  };
  const redraw = () => {
    if (chart) chart.destroy();
    chart = null;
    draw();
  };

  document.addEventListener("DOMContentLoaded", draw);
  document.addEventListener("htmx:after:swap", draw);
  addEventListener("resize", () => {
    const plot = document.getElementById("plot");
    if (chart && plot) chart.setSize({ width: plot.clientWidth, height: 260 });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // htmx also swaps nothing after a failed refresh, and reports that as a swap: the response decides.
  let fresh = new Date();
  const showStale = (stale) => {
    const since = document.getElementById("stale-since");
    if (since && stale) {
      since.dateTime = fresh.toISOString();
      since.title = fresh.toISOString();
      const zone = since.dataset.zone;
      since.textContent = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium", timeZone: zone }).format(fresh) + " " + zone;
    }
    const bar = document.getElementById("stale");
    if (bar && bar.hidden === stale) bar.hidden = !stale;
    document.body.classList.toggle("stale", stale);
  };
  document.addEventListener("htmx:error", () => showStale(true));
  document.addEventListener("htmx:response:error", () => showStale(true));
  document.addEventListener("htmx:after:swap", (event) => {
    const response = event.detail?.ctx?.response;
    if (!response || response.status < 200 || response.status >= 300) return;
    fresh = new Date();
    showStale(false);
  });
})();
