/** A server that acknowledges every write and discards it. It runs in its own process, so that it is not measured, and prints its address. */
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { createGunzip } from 'node:zlib';

let offset = 0;

const server = http.createServer((request, response) => {
  let writes = 0;
  const body = request.headers['content-encoding'] === 'gzip' ? request.pipe(createGunzip()) : request;
  body.on('data', (chunk: Buffer) => {
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, at + 1)) {
      writes++;
    }
  });
  body.on('end', () => {
    const results = Array.from({ length: writes }, () => `{"id":"019b7ca9-8f2e-8385-82d3-930000000000","receipt":"1.0.${offset++}"}`);
    response.writeHead(202, { 'Content-Type': 'application/json' }).end(`{"results":[${results.join(',')}]}`);
  });
});
server.listen(0, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
process.stdin.resume().on('end', () => process.exit());
