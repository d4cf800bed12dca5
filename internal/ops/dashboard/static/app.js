// Local times, the chart, and a bar when a refresh fails.
(() => {
  "use strict";
  const brief = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const detailed = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

  const localise = (root) => {
    for (const t of root.querySelectorAll("time[datetime]")) {
      const at = new Date(t.dateTime);
      if (isNaN(at)) continue;
      const text = (t.hasAttribute("data-detailed") ? detailed : brief).format(at);
      if (t.textContent !== text) t.textContent = text;
    }
  };

  // The server counts by hour; days are local.
  const floor = {
    hour: (d) => d.setMinutes(0, 0, 0),
    threehours: (d) => d.setHours(d.getHours() - (d.getHours() % 3), 0, 0, 0),
    day: (d) => d.setHours(0, 0, 0, 0),
  };
  const gather = (series) => {
    const start = Number(series.dataset.start);
    const paid = series.dataset.paid.split(",").map(Number);
    const accepted = series.dataset.accepted.split(",").map(Number);
    const down = floor[series.dataset.unit] || floor.hour;
    const data = [[], [], []];
    paid.forEach((n, i) => {
      const at = down(new Date((start + i * 3600) * 1000)) / 1000;
      const last = data[0].length - 1;
      if (data[0][last] === at) {
        data[1][last] += n;
        data[2][last] += accepted[i];
      } else {
        data[0].push(at);
        data[1].push(n);
        data[2].push(accepted[i]);
      }
    });
    return data;
  };

  let chart = null;
  let drawn = "";
  const draw = () => {
    const plot = document.getElementById("plot");
    const series = document.getElementById("series");
    if (!plot || !series || !window.uPlot) return;
    const unit = series.dataset.unit;
    const key = unit + series.dataset.start + series.dataset.paid + "|" + series.dataset.accepted;
    if (chart && key === drawn) return;
    const data = gather(series);
    drawn = key;
    if (chart && chart.unit === unit) {
      chart.setData(data);
      return;
    }
    if (chart) chart.destroy();
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const short = new Intl.DateTimeFormat(undefined, unit === "hour" ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short" });
    const long = new Intl.DateTimeFormat(undefined, unit === "day" ? { dateStyle: "full" } : { dateStyle: "medium", timeStyle: "short" });
    const bars = window.uPlot.paths.bars({ size: [0.72, 56], radius: 0.12 });
    const axis = { stroke: colour("--quiet"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const whole = new Intl.NumberFormat();
    const count = (u, n) => (n == null ? "–" : whole.format(n));
    chart = new window.uPlot({
      width: plot.clientWidth,
      height: 260,
      cursor: { y: false, points: { show: false }, drag: { setScale: false } },
      legend: { markers: { width: 0 } },
      scales: {
        x: { time: true, range: (u, low, high) => { const step = data[0].length > 1 ? data[0][1] - data[0][0] : 3600; return [low - step / 2, high + step / 2]; } },
        y: { range: (u, low, high) => [0, Math.max(4, high * 1.08)] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 64, incrs: unit === "hour" ? [3600, 7200, 10800, 14400, 21600, 43200] : [1, 2, 3, 5, 7, 14, 30].map((days) => days * 86400), values: (u, splits) => splits.map((s) => short.format(new Date(s * 1000))) },
        { ...axis, grid: { stroke: colour("--line"), width: 1 }, size: 52, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6], values: (u, splits) => splits.map((s) => whole.format(s)) },
      ],
      series: [
        { label: "From", value: (u, at) => (at == null ? "–" : long.format(new Date(at * 1000))) },
        { label: "Paid at Stripe", fill: colour("--paid"), stroke: colour("--paid"), width: 0, paths: bars, points: { show: false }, value: count },
        { label: "Accepted by TikTok", fill: colour("--accepted"), stroke: colour("--accepted"), width: 0, paths: bars, points: { show: false }, value: count },
      ],
    }, data, plot);
    chart.unit = unit;
  };
  const redraw = () => {
    if (chart) chart.destroy();
    chart = null;
    draw();
  };

  const refresh = () => {
    localise(document);
    draw();
  };
  document.addEventListener("DOMContentLoaded", refresh);
  document.addEventListener("htmx:after:swap", refresh);
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
      since.textContent = detailed.format(fresh);
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
