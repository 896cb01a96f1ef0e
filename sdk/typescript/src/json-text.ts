/** Works on JSON text without parsing it, so that its numbers keep every digit. */

export function quote(text: string): string {
  return JSON.stringify(text.toWellFormed());
}

/** Replaces the line breaks, which can only be between tokens, because a line of NDJSON has none. */
export function onOneLine(json: string): string {
  return json.replace(/[\r\n]/g, ' ').trim();
}

/** Applies `change` to every string of the JSON that is not a key. A regular expression would overflow the stack for long strings. */
export function mapStrings(json: string, change: (token: string) => string): string {
  const parts: string[] = [];
  for (let at = 0; ; ) {
    const start = json.indexOf('"', at);
    if (start < 0) {
      parts.push(json.slice(at));
      return parts.join('');
    }
    const end = endOfString(json, start);
    const token = json.slice(start, end);
    parts.push(json.slice(at, start), json[end] === ':' ? token : change(token));
    at = end;
  }
}

/** Returns the end of the string that begins at start. */
export function endOfString(json: string, start: number): number {
  let end = start + 1;
  for (let escapes = 1; escapes % 2 === 1; ) {
    end = json.indexOf('"', end) + 1;
    for (escapes = 0; json[end - 2 - escapes] === '\\'; escapes++);
  }
  return end;
}

/** Splits the JSON of an array into its elements, or the JSON of an object into its members with their names. */
export function piecesOf(json: string): string[] {
  const pieces: string[] = [];
  let depth = 0;
  let start = json.search(/[[{]/) + 1;
  for (let at = start - 1; at >= 0 && at < json.length; at++) {
    const c = json[at];
    if (c === '"') {
      at = endOfString(json, at) - 1;
    } else if (c === '{' || c === '[') {
      depth++;
    } else if (c === '}' || c === ']') {
      depth--;
    }
    if (depth === 0 || (c === ',' && depth === 1)) {
      pieces.push(json.slice(start, at).trim());
      start = at + 1;
    }
    if (depth === 0) {
      break;
    }
  }
  return pieces.filter((piece) => piece !== '');
}

/** Splits the JSON of an object into its members, by name. The values keep their text. */
export function membersOf(json: string): Map<string, string> {
  return new Map(piecesOf(json).map((piece) => {
    const end = endOfString(piece, 0);
    return [JSON.parse(piece.slice(0, end)) as string, piece.slice(piece.indexOf(':', end) + 1).trim()];
  }));
}
