// A mask painted over an image, with a pointer or the keyboard.

const PAINT = "rgb(255 69 0 / 60%)";
const LONGEST = 1024;

export class Mask {
  constructor(canvas, brush) {
    this.canvas = canvas;
    this.brush = brush;
    // Of the image's own size: white where it is painted.
    this.paint = document.createElement("canvas");
    this.source = document.createElement("canvas");
    this.painted = false;
    this.cursor = null;
    this.last = null;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#hideCursor());
  }

  get loaded() {
    return this.source.width > 0 && !this.canvas.closest("[hidden]");
  }

  async load(file) {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
    for (const one of [this.canvas, this.paint, this.source]) {
      one.width = Math.max(Math.round(bitmap.width * scale), 1);
      one.height = Math.max(Math.round(bitmap.height * scale), 1);
    }
    this.source.getContext("2d").drawImage(bitmap, 0, 0, this.source.width, this.source.height);
    // Small images would be too small to paint on.
    this.canvas.style.width = `${Math.max(this.canvas.width, 320)}px`;
    this.clear();
  }

  clear() {
    const pen = this.paint.getContext("2d");
    pen.fillStyle = "black";
    pen.fillRect(0, 0, this.paint.width, this.paint.height);
    this.painted = false;
    this.#show();
  }

  // Base64 of PNG files; the mask is null if nothing is painted.
  image() {
    return this.source.toDataURL("image/png");
  }

  mask() {
    return this.painted ? this.paint.toDataURL("image/png") : null;
  }

  get #radius() {
    return (Number(this.brush.value) / 200) * Math.max(this.canvas.width, this.canvas.height);
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }

  #begin(event) {
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.#at(event);
    this.#line(this.last, this.last);
  }

  #move(event) {
    if (!this.last) return;
    const here = this.#at(event);
    this.#line(this.last, here);
    this.last = here;
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const before = this.cursor ?? [this.canvas.width / 2, this.canvas.height / 2];
    if (event.key in steps) {
      const step = Math.max(this.#radius, 1);
      const [x, y] = steps[event.key];
      this.cursor = [
        Math.min(Math.max(before[0] + x * step, 0), this.canvas.width),
        Math.min(Math.max(before[1] + y * step, 0), this.canvas.height),
      ];
    } else if (event.key === " ") {
      this.cursor = before;
      this.#line(before, before);
    } else {
      return;
    }
    event.preventDefault();
    this.#show();
  }

  #hideCursor() {
    this.cursor = null;
    this.#show();
  }

  #line(from, to) {
    const pen = this.paint.getContext("2d");
    pen.strokeStyle = "white";
    pen.lineCap = "round";
    pen.lineWidth = this.#radius * 2;
    pen.beginPath();
    pen.moveTo(...from);
    // A line without a length would draw nothing.
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    this.painted = true;
    this.#show();
  }

  #show() {
    const { width, height } = this.canvas;
    if (!width) return;
    const pen = this.canvas.getContext("2d");
    const shade = document.createElement("canvas");
    shade.width = width;
    shade.height = height;
    const tint = shade.getContext("2d");
    const pixels = this.paint.getContext("2d").getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
    tint.putImageData(pixels, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = PAINT;
    tint.fillRect(0, 0, width, height);
    pen.clearRect(0, 0, width, height);
    pen.drawImage(this.source, 0, 0);
    pen.drawImage(shade, 0, 0);
    if (this.cursor) {
      pen.strokeStyle = "black";
      pen.lineWidth = Math.max(width / 160, 1);
      pen.beginPath();
      pen.arc(...this.cursor, this.#radius, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
}
