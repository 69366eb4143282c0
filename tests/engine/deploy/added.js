// Of the toy data that reads files.
function addInput() {
  $("input").append(make("p", {id: "added", textContent: "added"}));
}
