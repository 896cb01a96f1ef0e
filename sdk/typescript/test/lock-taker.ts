/**
 * A process that tries for locks at the same moments as others. Arguments: a directory, and how many there are in it. It says
 * `ready`, is told the time of the first, says the number of each that it got and then `end`, and keeps them until its
 * standard input ends.
 */
import { createInterface } from 'node:readline';

import { lock } from '../src/lock.js';

const [, , dir = '', count = ''] = process.argv;
console.log('ready');
for await (const start of createInterface({ input: process.stdin })) {
  for (let i = 0; i < Number(count); i++) {
    while (Date.now() < Number(start) + 5 * i) {
      // spin, to be there in time
    }
    try {
      lock(`${dir}/${i}`);
      console.log(i);
    } catch {
      // another one got it
    }
  }
  console.log('end');
}
