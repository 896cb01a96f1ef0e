/** Takes the place of node:timers/promises in the browser bundle. */
export function setTimeout<T>(ms: number, value?: T, { signal }: { signal?: AbortSignal } = {}): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const timer = globalThis.setTimeout(() => {
      signal?.removeEventListener('abort', aborted);
      resolve(value);
    }, ms);
    const aborted = () => {
      globalThis.clearTimeout(timer);
      reject(new DOMException('The operation was aborted', 'AbortError'));
    };
    if (signal?.aborted) {
      aborted();
    }
    signal?.addEventListener('abort', aborted, { once: true });
  });
}
