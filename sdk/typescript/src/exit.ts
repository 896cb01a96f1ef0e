/**
 * Sends the queued writes of clients that are still open when the process has nothing else to do, and warns of the writes that are lost
 * when the process ends.
 */

/** How the end of the process reaches a client. */
export interface ExitHooks {
  /** Returns how many writes would be lost if the process ended now. */
  writesLost: () => number;
  /** Sends the queued writes; undefined if there are none. */
  send: () => Promise<void> | undefined;
  /** Aborts the requests under way. */
  giveUp: () => void;
}

/** The clients that are not closed, with their hooks. */
const openClients = new Map<object, ExitHooks>();
/** The clients that could not send their writes in time. They are not tried again. */
const gaveUp = new WeakSet<object>();

/** Has the end of the process reach the client, until {@link unwatchExit}. */
export function watchExit(client: object, hooks: ExitHooks): void {
  openClients.set(client, hooks);
  process.off('exit', warnUnsent).on('exit', warnUnsent); // one listener for all clients
  process.off('beforeExit', sendUnsent).on('beforeExit', sendUnsent);
}

/** Ends {@link watchExit} for a client that was closed. */
export function unwatchExit(client: object): void {
  openClients.delete(client);
}

/** Sends the queued writes when the process has nothing else to do. The requests keep the process alive. */
function sendUnsent(): void {
  for (const [client, hooks] of openClients) {
    if (!gaveUp.has(client)) {
      hooks.send()?.catch(() => {
        gaveUp.add(client);
        hooks.giveUp();
      });
    }
  }
}

function warnUnsent(): void {
  for (const { writesLost } of openClients.values()) {
    if (writesLost() > 0) {
      console.warn(`sluice: ${writesAre(writesLost())} lost, because the process ends without client.close()`);
    }
  }
}

export function writesAre(n: number): string {
  return n === 1 ? '1 write is' : `${n} writes are`;
}
