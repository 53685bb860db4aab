use std::time::Duration;

use super::*;

#[test]
fn patience_is_learned_from_answers_within_its_bounds() {
    let ms = Duration::from_millis;
    let most = ms(1000);
    let mut silence = Silence::default();
    assert_eq!(silence.patience(most), most);
    for _ in 0..40 {
        silence.heard(ms(20));
    }
    assert_eq!(silence.patience(most), Silence::LEAST);
    // Twice as patient as a server needs whose answers take 200 or 400 ms, and no more than asked.
    for n in 0..40 {
        silence.heard(ms(200 + 200 * (n % 2)));
    }
    assert!((ms(500)..ms(900)).contains(&silence.patience(most)), "{silence:?}");
    assert_eq!(silence.patience(ms(200)), ms(200));
    // Answers that stall one after another are given more time, those of one in fifty are not.
    (0..40).for_each(|_| silence.heard(silence.patience(most)));
    assert_eq!(silence.patience(most), most);
    for _ in 0..50 {
        silence.heard(ms(20));
    }
    assert_eq!(silence.patience(most), Silence::LEAST);
}
