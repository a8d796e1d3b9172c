//! Text of others on a terminal: names of files, labels, what devices say of themselves.

/// Whether a character shows itself, and changes nothing of what is around it. Controls do not. Neither do characters
/// that turn the direction of the text around, that take no room, or that break a line: with them a name can look like
/// another, or hide a part of a message.
pub fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with every character that is not [`is_plain`] written out, as `\u{202e}`.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_show_itself_is_written_out() {
        assert_eq!(shown("Pièces à conviction, 証拠, 🗂"), "Pièces à conviction, 証拠, 🗂");
        assert_eq!(shown("é\u{1b}[2J\n"), "é\\u{1b}[2J\\n");
        // What reads as "report-txt.exe" in a terminal that turns text around.
        assert_eq!(shown("report-\u{202e}exe.txt"), "report-\\u{202e}exe.txt");
        for hidden in ["a\u{200b}b", "a\u{feff}b", "a\u{2066}b", "a\u{2028}b", "a\u{e0041}b", "a\u{ad}b", "a\u{fe0f}b"]
        {
            assert!(shown(hidden).starts_with("a\\u{"), "{hidden:?}");
        }
    }
}
