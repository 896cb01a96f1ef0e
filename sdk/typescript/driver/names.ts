/** Turns the members of an object from the API's names to the library's, or back. Their values stay as they are. */
export function camelCase(object: object): Record<string, unknown> {
  return rename(object, (name) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()));
}

export function snakeCase(object: object): Record<string, unknown> {
  return rename(object, (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
}

function rename(object: object, to: (name: string) => string): Record<string, unknown> {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [to(name), value as unknown]));
}
