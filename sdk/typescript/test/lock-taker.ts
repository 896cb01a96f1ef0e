/**
 * A process that tries to take locks at the same moments as others. Its arguments are a directory and the number of locks in it. It prints
 * `ready`, and reads the time of the first lock. It prints the number of each lock that it took and then `end`, and keeps the locks until
 * its standard input ends.
 */
import { createInterface } from 'node:readline';

import { lock } from '../src/lock.js';

const [, , dir = '', count = ''] = process.argv;
console.log('ready');
for await (const start of createInterface({ input: process.stdin })) {
  for (let i = 0; i < Number(count); i++) {
    while (Date.now() < Number(start) + 5 * i) {
      // busy wait, to be on time
    }
    try {
      lock(`${dir}/${i}`);
      console.log(i);
    } catch {
      // another process took it
    }
  }
  console.log('end');
}
