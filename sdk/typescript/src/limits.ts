/** After how many accepted batches in a row a limit that was learned is doubled, to find out whether it still holds. */
export const growAfterBatches = 100;

/**
 * The limits of one batch: those of the options, and smaller ones for as long as something between here and the log refuses
 * larger bodies.
 */
export class BatchLimits {
  writes: number;
  bytes: number;
  /** Batches accepted in a row since bytes last changed. */
  #accepted = 0;

  constructor(readonly writesMax: number, readonly bytesMax: number) {
    this.writes = writesMax;
    this.bytes = bytesMax;
  }

  /** Learns that a batch of so many bytes is too large: the next one is at most half of it, or one write. */
  tooLarge(bytes: number): void {
    this.bytes = Math.max(1, Math.min(this.bytes, Math.floor(bytes / 2)));
    this.#accepted = 0;
  }

  /** The next batches have at most half as many writes, until one of them is accepted. */
  halve(writes: number): void {
    this.writes = Math.max(1, Math.floor(writes / 2));
  }

  /** Notes that a batch was answered write by write. */
  ok(): void {
    this.writes = this.writesMax;
    if (this.bytes < this.bytesMax && ++this.#accepted >= growAfterBatches) {
      this.bytes = Math.min(2 * this.bytes, this.bytesMax);
      this.#accepted = 0;
    }
  }
}
