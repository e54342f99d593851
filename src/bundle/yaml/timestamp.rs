//! Parses timestamps: texts that Go's `time.Parse` accepts in one of the four layouts of go-yaml.

/// A point in time, with its offset from UTC.
#[derive(Debug, PartialEq)]
pub(super) struct Timestamp {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    nanosecond: u32,
    /// East of UTC.
    offset_minutes: i32,
}

impl Timestamp {
    /// Parses `YYYY-M-D`, alone, with a time after `T` or `t` and a zone, or with a time
    /// after spaces and no zone. A fraction of a second is cut at nine digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut rest = Rest(text.as_bytes());
        let year = rest.year()?;
        rest.expect(b'-')?;
        let month = rest.number()?;
        rest.expect(b'-')?;
        let day = rest.number()?;
        if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
            return None;
        }
        let date = Self {
            year,
            month,
            day,
            hour: 0,
            minute: 0,
            second: 0,
            nanosecond: 0,
            offset_minutes: 0,
        };
        match rest.0 {
            [] => return Some(date),
            [b'T' | b't', ..] => rest.0 = &rest.0[1..],
            [b' ', ..] => {}
            _ => return None,
        }
        let has_zone = rest.0.first() != Some(&b' ');
        rest.skip_spaces();
        let mut time = Self {
            hour: rest.number_below(24)?,
            ..date
        };
        rest.expect(b':')?;
        time.minute = rest.number_below(60)?;
        rest.expect(b':')?;
        time.second = rest.number_below(60)?;
        time.nanosecond = rest.fraction();
        if has_zone {
            time.offset_minutes = rest.zone()?;
        }
        rest.0.is_empty().then_some(time)
    }

    /// The text that Go's encoding/json writes (RFC 3339); `None` for an offset of 24 hours, which
    /// it refuses.
    pub(super) fn to_json(&self) -> Option<String> {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
            ..
        } = self;
        let fraction = match self.nanosecond {
            0 => String::new(),
            nanosecond => format!(".{nanosecond:09}").trim_end_matches('0').to_owned(),
        };
        let offset = self.offset_minutes.abs();
        let zone = match self.offset_minutes {
            0 => "Z".to_owned(),
            east => format!(
                "{}{:02}:{:02}",
                if east > 0 { '+' } else { '-' },
                offset / 60,
                offset % 60
            ),
        };
        (offset < 24 * 60).then(|| {
            format!(
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}"
            )
        })
    }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let number = std::str::from_utf8(digits)
            .ok()
            .filter(|_| digits.iter().all(u8::is_ascii_digit))?;
        self.0 = rest;
        number.parse().ok()
    }

    fn year(&mut self) -> Option<u32> {
        self.digits(4)
    }

    /// One or two digits.
    fn number(&mut self) -> Option<u32> {
        self.digits(2).or_else(|| self.digits(1))
    }

    fn number_below(&mut self, limit: u32) -> Option<u32> {
        self.number().filter(|number| *number < limit)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn skip_spaces(&mut self) {
        while let [b' ', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    fn fraction(&mut self) -> u32 {
        let [b'.' | b',', rest @ ..] = self.0 else {
            return 0;
        };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return 0;
        }
        let nanoseconds = (0..9).fold(0, |sum, at| {
            let digit = rest
                .get(at)
                .filter(|_| at < digits)
                .map_or(0, |byte| u32::from(byte - b'0'));
            sum * 10 + digit
        });
        self.0 = &rest[digits..];
        nanoseconds
    }

    /// `Z`, or a sign, hours and minutes. Go allows 24 hours and 60 minutes.
    fn zone(&mut self) -> Option<i32> {
        let (sign, rest) = self.0.split_first()?;
        self.0 = rest;
        let sign = match sign {
            b'Z' => return Some(0),
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let hours = self.digits(2).filter(|hours| *hours <= 24)?;
        self.expect(b':')?;
        let minutes = self.digits(2).filter(|minutes| *minutes <= 60)?;
        i32::try_from(hours * 60 + minutes)
            .ok()
            .map(|offset| sign * offset)
    }
}

fn days_in(year: u32, month: u32) -> u32 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
