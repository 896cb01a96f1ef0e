-- The words of each content, for the text search: see internal/fulltext, whose words
-- these must contain. JSON is searched as its decoded strings, without the names of
-- members: escaped backslashes and quotes are written by their numbers, so that the
-- quotes that are left begin and end strings; each string is marked, names are taken
-- out, and the rest is decoded as if it were one string.
--
-- A text in ASCII is divided at each character that is no letter or digit. In another
-- text the words in ASCII, each other character, and whole words in alphabets
-- beside the Latin one are found.
ALTER TABLE event_contents ADD COLUMN IF NOT EXISTS text String ALIAS
    replaceAll(lowerUTF8(if(kind != 2, content, coalesce(nullIf(JSONExtractString(concat('"', translate(
        replaceRegexpAll(replaceRegexpAll(replaceAll(replaceAll(content, '\\\\', '\\u005c'), '\\"', '\\u0022'),
            '"([^"]*)"(\\s*:)?', '\x02\\1\x01\\2'), '\x02[^\x01\x02]*\x01\\s*:', ' '),
        '\n\r\t\x02\x01', '     '), '"')), ''), content))), 'ς', 'σ');
ALTER TABLE event_contents ADD COLUMN IF NOT EXISTS words Array(String) ALIAS
    if(length(text) = lengthUTF8(text), tokens(text),
        arrayConcat(tokens(replaceRegexpAll(text, '[^\\x00-\\x7F]+', ' ')), extractAll(text, '[^\\x00-\\x7F]'),
            extractAll(text, '[\\p{Greek}\\p{Cyrillic}\\p{Armenian}\\p{Hebrew}\\p{Arabic}\\p{Devanagari}\\p{Bengali}\\p{Tamil}\\p{Telugu}\\p{Georgian}]+')));
-- Inserts do not build the index (see insert_settings.go). Merges do, and so does
-- the background task in words.go for the parts of an older version.
ALTER TABLE event_contents ADD INDEX IF NOT EXISTS content_words words TYPE text(tokenizer = 'array') GRANULARITY 100000000;
