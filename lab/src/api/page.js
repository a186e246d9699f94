(function () {
  var cloud = document.getElementById("cloud");
  function again() { setTimeout(look, document.hidden ? 5000 : 1000); }
  function scrolled(part) { return (part && part.querySelector(".scroll")) || { scrollTop: 0, scrollLeft: 0 }; }
  // What did not change is not touched, and what changed stays scrolled to where it was.
  function show(html) {
    var fresh = document.createElement("template"), next = cloud.firstElementChild, gone, old, part;
    fresh.innerHTML = html;
    while ((part = fresh.content.firstElementChild)) {
      old = document.getElementById(part.id);
      // Parts have one order: what stands before an old one is there no longer.
      while (old && next !== old) { gone = next; next = next.nextElementSibling; gone.remove(); }
      if (old && old.outerHTML === part.outerHTML) { part.remove(); next = old.nextElementSibling; continue; }
      cloud.insertBefore(part, next);
      if (old) {
        var to = scrolled(part), from = scrolled(old);
        to.scrollTop = from.scrollTop;
        to.scrollLeft = from.scrollLeft;
        next = old.nextElementSibling;
        old.remove();
      }
    }
    while (next) { gone = next; next = next.nextElementSibling; gone.remove(); }
  }
  function look() {
    fetch("fragment", { cache: "no-store" }).then(function (r) { return r.text(); }).then(function (html) {
      // Nothing moves under who is selecting text.
      if (String(getSelection()) === "") { show(html); }
      document.body.classList.remove("gone");
    }).catch(function () { document.body.classList.add("gone"); }).then(again);
  }
  again();
})();
