// Copy buttons, the selection of a replay, and a search that keeps its input after an error.
(() => {
  "use strict";
  document.documentElement.classList.add("script");

  // The clipboard's API needs https or a loopback name; the older command does not.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "unseen";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const done = await copy(button.dataset.copy);
    button.focus();
    button.textContent = done ? "Copied" : "Not copied";
    const status = document.getElementById("copied");
    if (status) status.textContent = `${button.textContent}: ${button.dataset.copy}`;
  });

  // A replay needs at least one purchase.
  const count = (form) => {
    const boxes = [...form.querySelectorAll("input[name=id]")];
    const chosen = boxes.filter((box) => box.checked).length;
    const button = form.querySelector("button[data-selected]");
    const all = form.querySelector("input[data-all]");
    button.disabled = chosen === 0;
    button.textContent = chosen === 0 ? button.dataset.selected : `Replay ${chosen} selected …`;
    all.checked = boxes.length > 0 && chosen === boxes.length;
    all.indeterminate = chosen > 0 && !all.checked;
  };
  const countAll = () => document.querySelectorAll("form[data-select]").forEach(count);
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-select]");
    if (!form) return;
    if (event.target.matches("input[data-all]")) {
      for (const box of form.querySelectorAll("input[name=id]")) box.checked = event.target.checked;
    }
    count(form);
  });
  document.addEventListener("DOMContentLoaded", countAll);
  document.addEventListener("htmx:after:swap", countAll);
  addEventListener("pageshow", countAll); // a page from the history has its ticks

  // An answer other than a found page replaces the content: navigation and input stay, and a searched e-mail
  // address is in no page.
  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("form.search");
    if (!form) return;
    event.preventDefault();
    try {
      const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
      if (answer.ok) {
        location.assign(answer.url);
        return;
      }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.title = page.title;
      form.querySelector("input").focus();
    } catch {
      form.submit(); // the browser shows the error
    }
  });
})();
