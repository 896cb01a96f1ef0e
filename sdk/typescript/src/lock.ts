import { randomUUID } from 'node:crypto';
import fs from 'node:fs';

import { SpoolInUseError } from './errors.js';

/** Who holds a lock. The token is of this lock alone; the start tells the process from a later one of the same number. */
interface Owner {
  pid: number;
  start: string;
  token: string;
}

/**
 * Takes the lock of a directory, which is held until the returned function is called or the process ends. It throws a
 * {@link SpoolInUseError} where a process that lives has it, this one too.
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
      // Exclusive as O_EXCL is, and the file is never seen without its content.
      fs.linkSync(mine, path);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw error;
      }
    }
    const content = read(path);
    if (content === undefined) {
      continue; // released meanwhile
    }
    const owner = parseOwner(content);
    if (owner === undefined || isAlive(owner)) {
      const who = owner === undefined ? 'another program' : `process ${owner.pid}`;
      throw new SpoolInUseError(`the spool is in use by ${who}; see ${path}`);
    }
    // The owner is dead. Whoever has the lock of this very lock, which its token names, may put its own in its place; the others
    // find that out by looking again.
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
  // In a container that is started again, the next process has the same number.
  const start = processStart(owner.pid);
  return start === undefined || owner.start === '-' || start === owner.start;
}

/** When the process started, of a clock of the system's; empty for a zombie, undefined where the system does not tell. */
function processStart(pid: number): string | undefined {
  try {
    const [state, ...fields] = fs.readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ');
    return state === 'Z' || state === 'X' ? '' : fields[18];
  } catch {
    return undefined;
  }
}
