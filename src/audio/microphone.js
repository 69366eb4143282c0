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
    return null;
  }

  button.onclick = async () => {
    $("message").textContent = "";
    try {
      recording = recording ? stop(recording) : await start();
    } catch (error) {
      $("message").textContent = `The microphone cannot be used: ${error.message || error}`;
    }
  };
  if (navigator.mediaDevices) $("input").prepend(make("div", {}, button));
  else $("message").textContent = "The browser records only on this machine or over HTTPS: choose a recording";
}

// Samples from -1 to 1 as a WAV file of 16 bits.
function wav(pieces, rate) {
  const samples = pieces.map(piece => Int16Array.from(piece, value => Math.max(-1, Math.min(1, value)) * 32767));
  const bytes = samples.reduce((sum, piece) => sum + piece.byteLength, 0);
  // "RIFF", size, "WAVE", "fmt ", 16 bytes: integers, one channel, rate, bytes a second, 2 bytes of 16 bits; "data".
  const form = [16, 0x10001, rate, 2 * rate, 0x100002];
  const head = [0x46464952, 36 + bytes, 0x45564157, 0x20746d66, ...form, 0x61746164, bytes];
  return new Blob([new Uint32Array(head), ...samples], {type: "audio/wav"});
}
