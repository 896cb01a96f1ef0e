// Bundles the library for browsers into dist/browser/index.js, which imports nothing.
import path from 'node:path';
import { build } from 'esbuild';

const dir = import.meta.dirname;

/** Replaces Node's modules, and this library's modules that need files or sockets, by the files of this directory. */
const standIns = {
  name: 'stand-ins',
  setup({ onResolve }) {
    onResolve({ filter: /^node:timers\/promises$/ }, () => ({ path: path.join(dir, 'sleep.ts') }));
    onResolve({ filter: /^node:/ }, () => ({ path: path.join(dir, 'node.ts') }));
    onResolve({ filter: /^\.\/(transport|spool)\.js$/ }, ({ path: name }) => ({ path: path.join(dir, name.replace(/\.js$/, '.ts')) }));
  },
};

await build({
  entryPoints: [path.join(dir, 'index.ts')],
  outfile: path.join(dir, '../dist/browser/index.js'),
  bundle: true,
  format: 'esm',
  platform: 'browser',
  target: 'es2022',
  inject: [path.join(dir, 'node.ts')],
  plugins: [standIns],
  logLevel: 'warning',
});
