// Added to the page of src.serve: records from the microphone, and sends what it hears as a WAV file.
function addInput() {
  $("title").textContent = "Say a word, or choose a recording";
  const button = make("button", {id: "record", textContent: "Record"});
  let recording = null;

  async function start() {
    const stream = await navigator.mediaDevices.getUserMedia({audio: true});
    const context = new AudioContext(), pieces = [];
    const node = context.createScriptProcessor(4096, 1, 1);
    node.onaudioprocess = event => pieces.push(event.inputBuffer.getChannelData(0).slice());
    context.createMediaStreamSource(stream).connect(node).connect(context.destination);
    button.textContent = "Stop";
    return {stream, context, pieces};
  }

  function stop({stream, context, pieces}) {
    stream.getTracks().forEach(track => track.stop());
    context.close();
    button.textContent = "Record";
    if (pieces.length) predict(wav(pieces, context.sampleRate), "audio/wav");
    else $("message").textContent = "Nothing was recorded: wait a moment before you stop";
  }

  button.onclick = async () => {
    $("message").textContent = "";
    if (recording) {
      stop(recording);
      recording = null;
      return;
    }
    try {
      recording = await start();
    } catch (error) {
      $("message").textContent = `The microphone cannot be used: ${error.message || error}`;
    }
  };
  if (navigator.mediaDevices) $("input").prepend(make("div", {}, button));
  else $("message").textContent = "The browser records only on this machine or over HTTPS: choose a recording";
}

// Samples from -1 to 1 as a WAV file of 16 bits.
function wav(pieces, rate) {
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0), view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);  // length of the format
  view.setUint16(20, 1, true);  // integers
  view.setUint16(22, 1, true);  // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const piece of pieces) for (const value of piece) {
    view.setInt16(at, Math.max(-1, Math.min(1, value)) * 32767, true);
    at += 2;
  }
  return new Blob([view.buffer], {type: "audio/wav"});
}
