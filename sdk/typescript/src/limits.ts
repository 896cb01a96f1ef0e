/** After this many accepted batches in a row, a lowered byte limit is doubled, to find out whether larger batches pass again. */
export const growAfterBatches = 100;

/**
 * The current limits of a batch. They begin as the options say. They are lowered when a batch is refused as a whole, and raised again
 * after batches were accepted.
 */
export class BatchLimits {
  writes: number;
  bytes: number;
  /** The number of batches accepted in a row since `bytes` last changed. */
  #accepted = 0;

  constructor(readonly writesMax: number, readonly bytesMax: number) {
    this.writes = writesMax;
    this.bytes = bytesMax;
  }

  /** Lowers the byte limit after a batch of the given size was too large: the next batch has at most half of it, or one write. */
  tooLarge(bytes: number): void {
    this.bytes = Math.max(1, Math.min(this.bytes, Math.floor(bytes / 2)));
    this.#accepted = 0;
  }

  /** Halves the number of writes of the next batches, until one of them is accepted. */
  halve(writes: number): void {
    this.writes = Math.max(1, Math.floor(writes / 2));
  }

  /** Raises the limits after a batch was answered write by write. */
  ok(): void {
    this.writes = this.writesMax;
    if (this.bytes < this.bytesMax && ++this.#accepted >= growAfterBatches) {
      this.bytes = Math.min(2 * this.bytes, this.bytesMax);
      this.#accepted = 0;
    }
  }
}
