/** The last receipt of each partition that has writes of this client. */
export class Receipts {
  readonly #byPartition = new Map<string, Receipt>();

  /** Adds a receipt if it is later than the others of its partition. Anything that is not a receipt is ignored. */
  add(text: unknown): void {
    const receipt = typeof text === 'string' ? parseReceipt(text) : undefined;
    if (receipt === undefined) {
      return;
    }
    const before = this.#byPartition.get(receipt.partition);
    if (
      before === undefined ||
      receipt.generation > before.generation ||
      (receipt.generation === before.generation && receipt.offset > before.offset)
    ) {
      this.#byPartition.set(receipt.partition, receipt);
    }
  }

  /** Returns the receipts in the form of the API. */
  all(): string[] {
    return Array.from(this.#byPartition.values(), (receipt) => receipt.text);
  }
}

/** The place of a write in the log. */
interface Receipt {
  text: string;
  generation: number;
  partition: string;
  offset: number;
}

function parseReceipt(text: string): Receipt | undefined {
  const [, generation, partition, offset] = /^(\d+)\.(\d+)\.(\d+)$/.exec(text) ?? [];
  if (partition === undefined) {
    return undefined;
  }
  return { text, generation: Number(generation), partition, offset: Number(offset) };
}
