import { randomUUID } from 'node:crypto';
import fs from 'node:fs';

import { SpoolInUseError } from './errors.js';

/** The owner of a lock. The token is unique to the lock. The start time tells the process from a later one with the same pid. */
interface Owner {
  pid: number;
  start: string;
  token: string;
}

/**
 * Takes a lock file. The lock is held until the returned function is called or the process ends. It throws a {@link SpoolInUseError} if
 * a living process has the lock, even if it is this process.
 */
export function lock(path: string): () => void {
  const token = randomUUID();
  const mine = `${path}.${token}.new`;
  fs.writeFileSync(mine, `${process.pid} ${processStart(process.pid) ?? '-'} ${token}\n`);
  try {
    acquire(path, mine);
  } finally {
    fs.rmSync(mine, { force: true });
  }
  return () => {
    fs.rmSync(path, { force: true });
  };
}

function acquire(path: string, mine: string): void {
  for (;;) {
    try {
      // A link is exclusive like O_EXCL, and nobody sees the lock file without its content.
      fs.linkSync(mine, path);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw error;
      }
    }
    const content = read(path);
    if (content === undefined) {
      continue; // the owner released it in the meantime
    }
    const owner = parseOwner(content);
    if (owner === undefined || isAlive(owner)) {
      const who = owner === undefined ? 'another program' : `process ${owner.pid}`;
      throw new SpoolInUseError(`the spool is in use by ${who}; see ${path}`);
    }
    // The owner is dead. Several processes may see that at once. The one that takes a second lock, named by the dead lock's token, may
    // replace the dead lock. The others find the new lock when they look again.
    const claim = `${path}.${owner.token}`;
    acquire(claim, mine);
    if (read(path) === content) {
      fs.renameSync(claim, path);
      return;
    }
    fs.rmSync(claim, { force: true });
  }
}

function read(path: string): string | undefined {
  try {
    return fs.readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return undefined;
    }
    throw error;
  }
}

function parseOwner(content: string): Owner | undefined {
  const [, pid, start, token] = /^(\d+) (\S+) ([\w-]+)\n$/.exec(content) ?? [];
  return pid === undefined || start === undefined || token === undefined ? undefined : { pid: Number(pid), start, token };
}

function isAlive(owner: Owner): boolean {
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  // In a restarted container, the next process often has the same pid.
  const start = processStart(owner.pid);
  return start === undefined || owner.start === '-' || start === owner.start;
}

/** Returns when the process started, in clock ticks since boot; empty for a zombie, undefined if the system does not tell. */
function processStart(pid: number): string | undefined {
  try {
    const [state, ...fields] = fs.readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ');
    return state === 'Z' || state === 'X' ? '' : fields[18];
  } catch {
    return undefined;
  }
}
