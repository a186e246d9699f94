(function () {
  var cloud = document.getElementById("cloud"), last = "";
  function again() { setTimeout(look, document.hidden ? 5000 : 1000); }
  function look() {
    fetch("fragment", { cache: "no-store" }).then(function (r) { return r.text(); }).then(function (html) {
      // What is being selected or read stays where it is as long as nothing changed.
      if (html !== last && String(getSelection()) === "") { cloud.innerHTML = html; last = html; }
      document.body.classList.remove("gone");
    }).catch(function () { document.body.classList.add("gone"); }).then(again);
  }
  again();
})();
