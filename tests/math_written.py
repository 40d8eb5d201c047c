# ruff: noqa: E501
"""Pairs of a reference and an answer, by kind: RIGHT and WRONG, for tests/test_math_written.py."""

RIGHT = {
    "equations": [
        ("9", "m+n=4+5=9"),
        ("9", r"x=\frac{18}{2}=9"),
        ("9", "|AB|=9"),
        ("9", "9=x"),
        ("9", "x = 9"),
        ("9", "f(2)=9"),
        ("9", "a_1 = 9"),
        ("9", r"S_{\triangle ABC}=9"),
        ("9", "AB = 9"),
        ("9", r"\angle A = 9^\circ"),
        ("9", r"\text{Area} = 9"),
        ("9", r"\text{Area} = 3 \times 3 = 9"),
        ("9", "面积=9"),
        ("9", "a+b+c=9"),
        ("9", "3^2=9"),
        (r"\frac{1}{2}", r"\cos A = \frac{1}{2}"),
        (r"\frac{1}{2}", r"P(A) = \frac{3}{6} = \frac{1}{2}"),
        (r"\sqrt{5}", r"|\vec{a}| = \sqrt{5}"),
        (r"2\sqrt{5}", r"|AB|=\sqrt{20}=2\sqrt{5}"),
        ("(3,2)", "(x,y)=(3,2)"),
        ("(3,2)", "(x, y) = (3, 2)"),
        ("(3,2)", "x=3, y=2"),
        ("(3,2)", r"x=3 \text{ and } y=2"),
        ("(3,2)", "P(3,2)"),
        ("x^2+1", "f(x)=x^2+1"),
        ("x^2+1", "y = x^2+1"),
        ("y=2x+3", "y-3=2x"),
        ("5x-y+2=0", "y=5x+2"),
        (r"\frac{x^2}{4}+y^2=1", "x^2+4y^2=4"),
        ("a_n=2n-1", "a_n=2n-1"),
        ("2n-1", "a_n = 2n-1"),
        ("x=3,y=2", "y=2, x=3"),
        ("x=3,y=2", "3, 2"),
        ("x=3", "3"),
        ("3", "x_1=x_2=3"),
        (r"\{1,2\}", r"A=\{1,2\}"),
        (r"A\cap B=\{1,2\}", r"\{1,2\}"),
        ("(1,2]", r"A \cap B = (1,2]"),
    ],
    "writing": [
        ("4-6i", "4-6 i"),
        ("4-6i", r"4-6\mathrm{i}"),
        ("4-6 i", "4-6i"),
        ("4-6i", "-6i+4"),
        ("10-2√5", r"10-2\sqrt{5}"),
        (r"10-2\sqrt{5}", "10-2√5"),
        (r"10-2\sqrt{5}", "10 - 2√(5)"),
        (r"10-2\sqrt{5}", "10-2sqrt(5)"),
        (r"\frac{\sqrt{3}}{2}", "√3/2"),
        (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
        ("n^2", "n²"),
        ("x^2+y^3", "x²+y³"),
        ("2^{-1}", "2⁻¹"),
        ("a_1", "a₁"),
        ("1195", r"1\,195"),
        ("1195", "1 195"),
        ("1195", "1,195"),
        ("1195", r"1{,}195"),
        ("1000000", r"1\,000\,000"),
        ("1234.5", "1,234.5"),
        (r"\frac{5}{2}", "2 1/2"),
        (r"\frac{5}{2}", r"2\frac{1}{2}"),
        (r"\frac{5}{2}", "2½"),
        ("2.5", "2 1/2"),
        (r"\frac{1}{2}", "½"),
        (r"\emptyset", r"\varnothing"),
        (r"\emptyset", "∅"),
        (r"\varnothing", r"\{\}"),
        (r"\frac{1}{3}", r"0.\overline{3}"),
        (r"\frac{1}{3}", r"0.\dot{3}"),
        (r"\frac{1}{3}", "0.(3)"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"0.\overline{36}", r"\frac{4}{11}"),
        (r"\frac{1}{6}", r"0.1\overline{6}"),
        (r"\pi", "π"),
        (r"2\pi", "2 pi"),
        (r"2\pi", r"2\cdot\pi"),
        (r"\frac{\pi}{3}", "π/3"),
        (r"\infty", "∞"),
        (r"\frac{3}{4}", "3÷4"),
        (r"x\cdot y", "x*y"),
        ("6x", r"6 \cdot x"),
        ("2^n", "2**n"),
        (r"\theta", "θ"),
        (r"3\times 10^8", "3×10⁸"),
        (r"\sqrt[3]{2}", "2^{1/3}"),
        (r"\frac{1}{2}", r"\left(\frac{1}{2}\right)"),
        ("5", r"\mathbf{5}"),
        ("5", r"\textbf{5}"),
        ("5", r"\displaystyle 5"),
        (r"\frac{1}{2}", r"\displaystyle\frac{1}{2}"),
        (r"\frac{1}{2}", r"$\frac{1}{2}$"),
        (r"\frac{1}{2}", r"\(\frac{1}{2}\)"),
        (r"\frac{1}{2}", r"\frac{1}{2}."),
        (r"\frac{1}{2}", ".5"),
        ("-5", "−5"),
        ("5", "５"),
        ("ab", "ab"),
        ("ab", r"a \cdot b"),
        (r"e^2", r"\mathrm{e}^{2}"),
        (r"\ln 2", r"\ln{2}"),
        (r"\ln 2", r"\ln(2)"),
        (r"\lg 2", r"\log_{10} 2"),
        (r"\vec{a}+2\vec{b}", r"2\overrightarrow{b}+\overrightarrow{a}"),
        (r"2\mathbf{i}+3\mathbf{j}", r"3\mathbf{j}+2\mathbf{i}"),
        (r"2\mathbf{i}+3\mathbf{j}", r"2\vec{i}+3\vec{j}"),
        (r"2\mathbf{i}+3\mathbf{j}", "2i+3j"),
        ("4-3t", "-3t+4"),
        ("x+2t", "2t+x"),
        (r"\sin 2t", r"\sin(2t)"),
        (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{bmatrix} \frac12 \\ 3 \end{bmatrix}"),
        ("6 \\times 10^{13}", "6e13"),
        ("6e13", r"6 \times 10^{13}"),
        ("6e13", r"6 \cdot 10^{13}"),
        ("6e13", r"6.0 \times 10^{13}"),
        ("6.02E+23", r"6.02\times10^{23}"),
        ("1.5e-3", "0.0015"),
        ("1e-7", "10^{-7}"),
        ("6e13", "60000000000000"),
        ("3:2", "3/2"),
        ("1:2:3", "2:4:6"),
        ("2:15 PM", r"2:15 \text{ P.M.}"),
        (r"2:15\text{ p.m.}", "2:15 PM"),
        (r"2:15 \text{ P.M.}", "2:15"),
        ("5am", "5 a.m."),
        ("100,200", "100, 200"),
        ("-1+2i", "2i-1"),
    ],
    "units": [
        ("5", "5元"),
        ("5", "5个"),
        ("5", "5平方厘米"),
        ("5", "5 平方厘米"),
        ("5", "5千米/小时"),
        ("5", "5小时"),
        ("5", "5分钟"),
        ("5", "5米"),
        ("5", "5岁"),
        ("5", "5只"),
        ("5", "5本书"),
        ("5", "5个苹果"),
        ("5", r"5\text{ 元}"),
        ("5", r"5\text{平方米}"),
        ("5", r"5\,\text{cm}"),
        ("5", r"5~\mathrm{cm}^2"),
        ("5", "5 cm"),
        ("5", "5cm"),
        ("5", "5 cm^2"),
        ("5", "5 cm²"),
        ("5", "5 m/s"),
        ("5", r"5 \text{ m/s}^2"),
        ("5", "5 km/h"),
        ("5", "5 miles per hour"),
        ("5", "5 mph"),
        ("5", "5 square units"),
        ("5", r"5\text{ square units}"),
        ("5", r"5 \text{ cubic inches}"),
        ("5", r"5\text{ sq. ft.}"),
        ("90", "90°"),
        ("90", "90度"),
        ("90", "90 degrees"),
        ("90", r"90^{\circ}"),
        (r"90^\circ", "90°"),
        ("18", "18 dollars"),
        ("18", r"18\text{ dollars}"),
        ("18", "$18"),
        ("18", r"\$18"),
        ("18", r"\$18.00"),
        ("18", "€18"),
        ("18", "£18"),
        ("18", "¥18"),
        ("18", "18 USD"),
        (r"\$18", "18 dollars"),
        (r"\$18.90", "18.9"),
        ("20", r"$\ 20\ cm^2$"),
        ("20", r"20\ \text{cm}^{2}"),
        ("5", "€5"),
        ("7", "7 apples"),
        ("7", r"7 \text{ red apples}"),
        ("7", r"7\text{ ways}"),
        ("12 cm", "12厘米"),
        (r"12 \text{ cm}", "12 centimeters"),
        (r"12 \text{ cm}^2", "12 square centimeters"),
        (r"12 \text{ km/h}", "12 kilometers per hour"),
        (r"12 \text{ feet}", "12 ft"),
        (r"12 \text{ apples}", "12 apples"),
        (r"12 \text{ apples}", "12"),
        ("12元", "12"),
        ("12元", "12 yuan"),
        (r"\frac{5}{2}", r"\frac{5}{2}\text{ hours}"),
        (r"\frac{5}{2}", r"2.5\text{ hours}"),
        (r"5\pi", r"5\pi \text{ cm}"),
        (r"5\pi", r"5\pi\text{ square inches}"),
        (r"5\sqrt{3}", r"5\sqrt{3}\text{ m}"),
        (r"5\sqrt{3}", r"5\sqrt{3} cm"),
        ("9", "x = 9 cm"),
        ("9", r"AB = 9\text{ cm}"),
        (r"45\%", "45%"),
        (r"45\%", "45"),
        (r"45\%", r"45 \text{ percent}"),
        (r"45\%", "45 percent"),
        (r"45\%", "0.45"),
        (r"45\%", r"\frac{9}{20}"),
        ("45", r"45\%"),
        (r"\frac{9}{20}", r"45\%"),
        ("6", r"6\text{ m}"),
        ("6", "6 m"),
        ("6", "6 kg"),
        (r"6\text{ m}", "6m"),
        (r"-3 m", "-3"),
    ],
    "lists": [
        ("3,5", "3或5"),
        ("3,5", "3、5"),
        ("3,5", "3和5"),
        ("3,5", "5, 3"),
        ("3,5", r"x=3 \text{ or } x=5"),
        ("3,5", "x=3 or x=5"),
        ("3,5", "x=3,5"),
        ("3,5", "x=3, x=5"),
        ("3,5", "x_1=3, x_2=5"),
        ("3,5", "x=3或x=5"),
        ("3,5", r"\{3,5\}"),
        ("3,5", r"3\text{ and }5"),
        ("3,5", "3; 5"),
        (r"3\text{ and }5", "3, 5"),
        (r"3\text{ or }5", "3, 5"),
        ("1,2,3", "1, 2, and 3"),
        ("1,2,3", r"1, 2, \text{ and } 3"),
        ("2,-2", r"\pm 2"),
        ("2,-2", r"x = \pm 2"),
        ("2,-2", "±2"),
        (r"1\pm\sqrt{2}", r"x=1\pm\sqrt{2}"),
        (r"1\pm\sqrt{2}", r"1+\sqrt{2} \text{ or } 1-\sqrt{2}"),
        (r"\frac{1\pm\sqrt{5}}{2}", r"\frac{1+\sqrt{5}}{2}, \frac{1-\sqrt{5}}{2}"),
        ("(1,2),(3,4)", "(3,4), (1,2)"),
        ("(1,2),(3,4)", r"(1,2)\text{ and }(3,4)"),
        (r"\text{B, E, G}", "B, E, G"),
        (r"\text{B, E, G}", r"\text{B}, \text{E}, \text{G}"),
        (r"\text{B, E, G}", "E, B, G"),
        ("8;$-2$", "8, -2"),
        ("①③④", "①③④"),
    ],
    "regions": [
        (r"(-\infty,2)", r"\{x \mid x<2\}"),
        (r"(-\infty,2)", r"\{x|x<2\}"),
        (r"(-\infty,2)", "x<2"),
        (r"(-\infty,2)", "x < 2"),
        (r"(-\infty,2]", r"x\le 2"),
        (r"(-\infty,2]", r"x\leq 2"),
        (r"(-\infty,2]", "x≤2"),
        (r"(-\infty,2]", r"2\ge x"),
        (r"[2,\infty)", r"x\geqslant 2"),
        (r"[2,\infty)", r"[2,+\infty)"),
        (r"[2,\infty)", r"x\in[2,+\infty)"),
        ("[-2,1)", r"\{x|-2\leq x < 1\}"),
        ("[-2,1)", r"-2 \le x < 1"),
        ("[-2,1)", r"1 > x \ge -2"),
        (r"\{x|-2\leq x < 1\}", "[-2,1)"),
        (r"\{x|-2\leq x < 1\}", r"\{x \in \mathbb{R} \mid -2\leq x < 1\}"),
        (r"-2 \le x < 1", "[-2,1)"),
        (r"-2 \le x < 1", r"x\in[-2,1)"),
        ("(-2,1)", "-2<x<1"),
        (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ or } x>3"),
        (r"(-\infty,1)\cup(3,\infty)", "x<1或x>3"),
        (r"(-\infty,1)\cup(3,\infty)", r"\{x \mid x<1 \text{ or } x>3\}"),
        (r"(-\infty,1)\cup(3,\infty)", r"(3,+\infty)\cup(-\infty,1)"),
        (r"x<1 \text{ or } x>3", r"(-\infty,1)\cup(3,\infty)"),
        (r"(-\infty,2)\cup(2,\infty)", r"x\ne 2"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"\{x|x\neq 2\}"),
        (r"(-\infty,\infty)", r"\mathbb{R}"),
        (r"\mathbb{R}", r"(-\infty,+\infty)"),
        (r"[\frac{1}{2},1]", r"0.5\le x\le 1"),
        (r"(0,\frac{\pi}{2})", r"0<x<\frac{\pi}{2}"),
        ("k>3", r"(3,+\infty)"),
        ("(1,2]", "(1,2]."),
        ("a>b>c", "a>b>c"),
    ],
    "sets": [
        (r"\{1,2,3\}", r"\{3,2,1\}"),
        (r"\{1,2,3\}", "{1,2,3}"),
        (r"\{1,2,3\}", r"\left\{1,2,3\right\}"),
        (r"\{-1,0\}", r"A=\{-1,0\}"),
        ("{2,3,4}", r"\{2,3,4\}"),
    ],
    "words": [
        ("no", "No"),
        ("no", r"\text{no}"),
        (r"\text{east}", "East"),
        (r"\text{east}", r"\textbf{east}"),
        ("第一象限", "第一象限"),
        ("第一象限", r"\text{第一象限}"),
        (r"\text{increasing}", "increasing."),
        ("Evelyn", r"\text{Evelyn}"),
        (r"\text{Infinitely many solutions}", r"\text{infinitely many solutions}"),
        ("yes", "Yes."),
    ],
    "letters": [
        (r"\textbf{(A)}\ 72", "72"),
        (r"\textbf{(A)}\ 72", "A"),
        (r"\textbf{(A)}\ 72", r"\textbf{(A)}\ 72"),
        (r"\textbf{(A)}\ 72", r"\textbf{(A) } 72"),
        (r"\textbf{(A)}\ 72", "(A)"),
        (r"\text{(C)}", "C"),
        (r"\text{(C)}", r"\textbf{(C)}"),
        (r"\text{(C)}", r"\textbf{(C)}\ 12"),
        ("C", r"\text{C}"),
        ("C", "(C)"),
    ],
    "numbers": [
        ("2", r"\frac{4}{2}"),
        ("1024", "2^{10}"),
        ("2", r"\sqrt{4}"),
        ("-2", r"-\sqrt{4}"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"2\sqrt{3}", r"\frac{6}{\sqrt{3}}"),
        (r"2\sqrt{3}", r"2\cdot\sqrt{3}"),
        (r"2+\sqrt{3}", r"\frac{4+2\sqrt{3}}{2}"),
        (r"\frac{1+\sqrt{5}}{2}", r"\frac{1}{2}+\frac{\sqrt{5}}{2}"),
        (r"\frac{\sqrt{6}+\sqrt{2}}{4}", r"\frac{\sqrt{2}(\sqrt{3}+1)}{4}"),
        ("300000000", r"3\times 10^8"),
        ("0.000001", "10^{-6}"),
        (r"6.63\times10^{-34}", r"6.63\cdot 10^{-34}"),
        (r"\frac{1}{2^{98}}", "2^{-98}"),
        (r"\frac{7}{3}", "2.3333333"),
        ("0.333333", r"\frac{1}{3}"),
        ("3628800", "3628800"),
        ("10!", "3628800"),
        (r"\binom{10}{3}", "120"),
        (r"2^{10}\cdot 3", "3072"),
        (r"-\frac{1}{2}", r"-0.5"),
        (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
        (r"\ln 2", r"-\ln\frac{1}{2}"),
        (r"5", "5.00"),
        ("100", "10^2"),
        (r"\frac{3\pi}{4}", r"\frac{3}{4}\pi"),
        (r"\frac{3\pi}{4}", r"0.75\pi"),
    ],
}  # fmt: skip

WRONG = {
    "equations": [
        ("9", "m+n=4+6=9"),
        ("9", "x=10=9"),
        ("9", "x=y=9"),
        ("9", "8=x"),
        ("4", "x^2+y^2=4"),
        ("9", "x^2=9"),
        ("9", "2x=9"),
        ("9", "9=10"),
        ("9", "x=9=10"),
        ("9", r"x\ne 9"),
        ("9", "x>9"),
        ("(3,2)", "(x,y)=(2,3)"),
        ("(3,2)", "x=2, y=3"),
        ("x=3,y=2", "x=2,y=3"),
        ("y=2x+3", "y=2x"),
        ("y=2x+3", "3"),
        ("x=3", "y=3"),
        ("x^2+y^2=4", "x^2+y^2=2"),
        ("x+y=1", "1"),
    ],
    "units": [
        ("4-3t", "1"),
        ("4-3t", "4"),
        ("x+2t", "x+2"),
        (r"\sin 2t", r"\sin 2"),
        ("6m", "6s"),
        (r"2\mathbf{i}+3\mathbf{j}", "2"),
        (r"2\mathbf{i}+3\mathbf{j}", "5"),
        ("10 km", "10 m"),
        (r"10\text{ km}", r"10\text{ m}"),
        (r"10\text{ cm}^2", r"10\text{ cm}"),
        (r"10\text{ cm}^2", "10 m^2"),
        ("10元", "10角"),
        (r"\$10", "10 cents"),
        (r"\$10", "€10"),
        ("5小时", "5分钟"),
        ("5", r"5\text{ hours }30\text{ minutes}"),
        ("5", "5 hours 30 minutes"),
        ("5", "5小时30分钟"),
        ("5", "5元5角"),
        ("10", r"10\text{ or more}"),
        ("10", "10 or more"),
        ("10", "10以上"),
        ("7", r"7 \text{ is wrong}"),
        ("7", "7 is wrong"),
        ("7", r"\text{not } 7"),
        ("7", r"7\text{ or } 8"),
        ("7", "7或8"),
        ("7", "约7"),
        ("7", "7左右"),
        ("7", r"7\text{ at least}"),
        ("7", r"\text{at least } 7"),
        ("7", r"\text{about } 7"),
        ("7", "7 dozen"),
        ("7", "7 million"),
        ("7", "7万"),
        ("7", "7 thousand"),
        ("12", "12ab"),
        ("12", "12x"),
        ("12", "12 xy"),
        ("5", "5i"),
        ("5", r"5\pi"),
        ("5", "5e"),
        (r"\frac{\pi}{6}", r"30^\circ\text{C}"),
        ("30", r"30\text{ radians to degrees}"),
        ("21y+14", "35"),
        ("2c", "2"),
        ("3d", "3"),
        ("12 apples", "12 oranges"),
        ("5%", "5元"),
        ("0.05", "5"),
    ],
    "lists": [
        ("3,5", "3"),
        ("3", "3,5"),
        ("3,5", "3,6"),
        ("3,5", "3或6"),
        ("3,5", "x=3, x=6"),
        ("2,-2", "2"),
        ("2", r"\pm 2"),
        ("(1,2),(3,4)", "(1,3),(2,4)"),
        ("(1,2)", "(2,1)"),
        ("1,2,3", "1,2,3,4"),
        (r"\text{B, E, G}", "B, E"),
        ("1:2:3", "1:3:2"),
    ],
    "regions": [
        (r"(-\infty,2)", r"x\le 2"),
        (r"(-\infty,2]", "x<2"),
        (r"(-\infty,2]", "x>2"),
        ("(1,2)", "[1,2]"),
        ("(1,2]", "[1,2)"),
        ("(1,2)", r"1\le x\le 2"),
        (r"\{1,2\}", "[1,2]"),
        (r"\{1,2\}", r"1\le x\le 2"),
        (r"(-\infty,1)\cup(3,\infty)", "1<x<3"),
        (r"(-\infty,1)\cup(3,\infty)", "x<1"),
        ("x<2", "y<2"),
        ("2", "x<2"),
        (r"\mathbb{R}", r"\emptyset"),
        ("a>b>c", "b>a>c"),
    ],
    "words": [
        ("no", "on"),
        ("no", "yes"),
        ("no", "not no"),
        ("east", "seat"),
        (r"\text{east}", "teas"),
        ("even", "odd"),
        ("even", r"\text{not even}"),
        ("第一象限", "第二象限"),
        (r"\text{Monday}", r"\text{Monday or Tuesday}"),
        ("Ben", "Neb"),
        ("yes", "yes or no"),
    ],
    "letters": [
        (r"\textbf{(A)}\ 72", "73"),
        (r"\textbf{(A)}\ 72", r"\textbf{(A)}\ 73"),
        (r"\textbf{(A)}\ 72", "B"),
        (r"\textbf{(A)}\ 72", r"\textbf{(B)}\ 72"),
        (r"\text{(C)}", "D"),
        (r"\text{(C)}", r"\textbf{(D)}\ 12"),
        ("C", "B or C"),
    ],
    "numbers": [
        (r"6.63\times10^{-34}", "0.0"),
        (r"6.63\times10^{-34}", "0"),
        (r"6.63\times10^{-34}", r"6.62\times10^{-34}"),
        (r"6.63\times10^{-34}", r"6.63\times10^{-33}"),
        (r"1.6\times10^{-19}", r"1.7\times10^{-19}"),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
        ("10^{-9}", "10^{-10}"),
        ("10^{-9}", "0"),
        ("0.0000001", "0.0000002"),
        (r"\frac{x}{2^{98}}", r"\frac{x}{2^{99}}"),
        ("6e13", "6e12"),
        ("6e13", "78"),
        (r"\frac{1}{3}", "0.333"),
        (r"\frac{1}{3}", "0.33"),
        (r"\pi", "3.14159"),
        (r"\pi", r"\frac{355}{113}"),
        ("1000000", "1000001"),
        ("12345678", "12345679"),
        (r"\frac{2}{3}\vec{a}+\frac{1}{3}\vec{b}", r"\frac23"),
        (r"\frac{2}{3}\overrightarrow{AB}+\frac{1}{3}\overrightarrow{AC}", r"\frac{2}{3}"),
        (r"\frac{2}{3}\vec{a}+\frac{1}{3}\vec{b}", r"\frac{2}{3}\vec{a}"),
        (r"\frac{2}{3}\vec{a}+\frac{1}{3}\vec{b}", r"\frac{1}{3}\vec{a}+\frac{2}{3}\vec{b}"),
        ("2:15 PM", "2:15 AM"),
        ("2:15 PM", "2:16 PM"),
        (r"0.\overline{3}", "0.3"),
        ("2 1/2", r"\frac{21}{2}"),
    ],
    "left to compute": [
        ("9999", r"99 \times 101"),
        ("9999", r"101 \cdot 99"),
        ("9999", r"99\cdot101+0"),
        ("9999", "9999+0"),
        ("9999", "99*101"),
        ("9999", "(99)(101)"),
        ("9999", "10000-1"),
        ("9999", "100^2-1"),
        ("120", r"\binom{10}{3}"),
        ("120", "5!"),
        ("5", "|-5|"),
        ("5", "2+3"),
        ("5", r"\frac{4+6}{2}"),
        ("5", r"\sqrt{9+16}"),
        ("5", r"\log_2 32"),
        ("1", r"\sin 90^\circ"),
        ("5", r"\lfloor 5.5 \rfloor"),
        ("5", r"\gcd(10,15)"),
        ("5", r"\sum_{i=1}^{5} 1"),
        ("5", "5x^0"),
        ("28", r"\frac{8 \cdot 7}{2}"),
        ("1024", r"2^{5+5}"),
        ("1024", r"2^{2\cdot 5}"),
        (r"4\sqrt{2}", r"3\sqrt{2}+\sqrt{2}"),
        (r"8\sqrt{2}", r"\sqrt{18}+\sqrt{50}"),
        (r"7+4\sqrt{3}", r"(2+\sqrt{3})^2"),
        ("3+4i", "(2+i)^2"),
        ("5i", "(2+i)(1+2i)"),
        ("5", r"10\%\cdot 50"),
        ("9", "x=4+5"),
        ("9", "m+n=4+5"),
    ],
}  # fmt: skip

# (question, reference, answer)
REPEATED = [
    ("Factor $x^2-9$.", "(x-3)(x+3)", "-9+x^2"),
    (r"What is $5 \times 1$?", "5", r"5=5\cdot1"),
    ("Find the pair $(b,a)$.", "(3,4)", "a=3, b=4"),
    ("Find $x_1$ and $x_2$.", "3, 5", "x_1=5, x_2=3"),
    (r"Compute $99 \cdot 101$.", "9999", r"99 \times 101"),
    (r"Compute $2^{10}$.", "1024", "2^{10}"),
    (r"Compute $2^{10}$.", "1024", "(2)^{10}"),
    (r"Compute $\sqrt{144}$.", "12", r"\sqrt{144}"),
    (r"What is $\frac{84}{7}$?", "12", r"\frac{84}{7}"),
    (r"What is $84 \div 7$?", "12", r"\frac{84}{7}"),
    (r"What is 84/7?", "12", r"\frac{84}{7}"),
    (r"Simplify $\frac{84}{144}$.", r"\frac{7}{12}", r"\frac{84}{144}"),
    (r"Simplify $\sqrt{50}$.", r"5\sqrt{2}", r"\sqrt{50}"),
    ("Expand $(x+1)^2$.", "x^2+2x+1", "(1+x)^2"),
    ("Expand $(x+1)^2$.", "x^2+2x+1", "(x+1)^2+0"),
    ("Expand $(x+1)^2$.", "x^2+2x+1", r"1\cdot(x+1)^2"),
    ("Expand $(x+1)(x+2)$.", "x^2+3x+2", "(x+2)(x+1)"),
    ("Factor $x^2+3x+2$.", "(x+1)(x+2)", "x^2+2+3x"),
    ("Factor $x^2+3x+2$.", "(x+1)(x+2)", "x^2+3x+2"),
    ("Factor $x^2+3x+2$.", "(x+1)(x+2)", "x^2+3x+2+1-1"),
    ("Factor $x^2+3x+2$.", "(x+1)(x+2)", r"\frac{x^2+3x+2}{1}"),
    (r"Simplify $\sqrt{50}$.", r"5\sqrt{2}", r"\frac{\sqrt{50}}{1}"),
    (r"Write $\frac{3}{20}$ as a decimal.", "0.15", r"\frac{3}{20}"),
    ("Write 0.15 as a fraction.", r"\frac{3}{20}", "0.15"),
    ("Write 45% as a decimal.", "0.45", r"45\%"),
    ("What is 3! + 1?", "7", "3!+1"),
    ("计算 $12 \\times 5$", "60", r"5 \times 12"),
    ("计算：99×101", "9999", "99×101"),
    (r"Find $\log_2 8$.", "3", r"\log_2 8"),
    (r"Find $\binom{5}{2}$.", "10", r"\binom52"),
    (r"Evaluate $|-5|$.", "5", "|-5|"),
    (r"Evaluate $\int_0^1 2x\,dx$.", "1", r"\int_0^1 2x dx"),
    (r"What is $i^4$?", "1", "i^4"),
]
NOT_REPEATED = [
    (r"Compute $99 \cdot 101$.", "9999", r"99\cdot101=9999"),
    (r"Simplify $\sqrt{50}$.", r"5\sqrt{2}", r"\sqrt{50}=5\sqrt2"),
    ("Factor $x^2+2x$.", "x(x+2)", "x^2+2x=x(x+2)"),
    ("Differentiate $x^3$.", "3x^2", r"\frac{d}{dx}x^3=3x^2"),
    ("Find the pair $(b,a)$.", "(3,4)", "a=4, b=3"),
    ("Each costs 0.75 dollars, and one is left. What share is that?", r"\frac{3}{4}", "0.75"),
    (r"The angle is in $(0,\pi/2)$.", r"\frac{\pi}{2}", r"\pi/2"),
    ("Point $A(3,-2)$ turns into?", "(-2,3)", "(-2, 3)"),
    ("Expand $(x+1)^2$.", "x^2+2x+1", "x^2+1+2x"),
    ("Factor $x^2+3x+2$.", "(x+1)(x+2)", "(x+2)(x+1)"),
    ("Is it $1/2$ or $1/3$?", r"\frac{1}{2}", "1/2"),
    (r"Which is larger, $\sqrt{2}$ or $\sqrt{3}$?", r"\sqrt{3}", r"\sqrt{3}"),
    ("The rate is $5$ m/s. How far?", "10", "10 m"),
    ("Find $100m+n$.", "205", "100m+n=205"),
    ("Find $x^2+y^2$.", "4", "x^2+y^2=4"),
    ("Find $2x$.", "10", "2x=10"),
    ("Which line? $y = 2x+3$ or $y = x$", "y=2x+3", "y=3+2x"),
]
VARIABLES = [("Let $m$ be a number of $s$.", "6", "6m"), ("Let $t$ be it.", "6t", "6")]

# One pair a line: reference || answer.
MORE_RIGHT = r"""
9 || n = 9
9 || \boldsymbol{9}
9 || 9\,
9 || 9 \text{ (units)}
9 || \underline{9}
9 || \text{9}
9 || \mathrm{9}
9 || {9}
9 || 9\\
9 || \(9\)
9 || \[9\]
9 || $$9$$
9 || ~9~
9 || 9\text{.}
9 || nine = 9
9 || \text{Answer: } 9
9 || Answer: 9
9 || 9.0
9 || +9
9 || 9 \quad
-9 || - 9
-9 || $-9$
-9 || \text{-}9
\frac{3}{4} || \frac34
\frac{3}{4} || \frac{3}4
\frac{3}{4} || 3 / 4
\frac{3}{4} || {3}/{4}
\frac{3}{4} || \frac{6}{8}
\frac{3}{4} || 0.750
\frac{3}{4} || 75\%
-\frac{3}{4} || -0.75
-\frac{3}{4} || -(3/4)
-\frac{3}{4} || \frac{-3}{4}
1\frac{3}{4} || 1 3/4
1\frac{3}{4} || 1.75
1\frac{3}{4} || \frac{7}{4}
1\frac{3}{4} || 1 \frac{3}{4}
1\frac{3}{4} || 1\tfrac{3}{4}
\sqrt{2} || \sqrt 2
\sqrt{2} || √2
\sqrt{2} || 2^{\frac{1}{2}}
\sqrt{2} || 2^{0.5}
\sqrt{2} || \sqrt[2]{2}
\frac{\sqrt{2}}{2} || \frac{1}{\sqrt{2}}
\frac{\sqrt{2}}{2} || \sqrt{\frac{1}{2}}
\frac{\sqrt{2}}{2} || \sqrt{0.5}
\frac{\sqrt{2}}{2} || \frac{1}{2}\sqrt{2}
\frac{\sqrt{2}}{2} || √2/2
\frac{\sqrt{2}}{2} || (√2)/2
3\sqrt{2} || \sqrt{18}
3\sqrt{2} || 3√2
3\sqrt{2} || 3*sqrt(2)
3\sqrt{2} || 3 \times \sqrt{2}
3\sqrt{2} || 3 \sqrt{2}
2\pi || 6.283185307
2\pi || 2π
2\pi || 2*pi
2\pi || \pi \cdot 2
\frac{\pi}{2} || \pi/2
\frac{\pi}{2} || 0.5\pi
\frac{\pi}{2} || \frac{1}{2}\pi
\frac{\pi}{2} || \frac{\pi}{2} \text{ radians}
\frac{\pi}{2} || \pi / 2 rad
e^{2} || e²
e^{2} || \exp(2)
\ln 2 || ln 2
\ln 2 || ln(2)
\ln 2 || \log_e 2
2^{n+1} || 2 \cdot 2^n
n^2-1 || (n-1)(n+1)
\frac{n(n+1)}{2} || n(n+1)/2
\frac{n(n+1)}{2} || \frac{n^2+n}{2}
\frac{n(n+1)}{2} || \frac{1}{2}n(n+1)
\frac{n(n+1)}{2} || S_n=\frac{n(n+1)}{2}
2^n - 1 || a_n = 2^{n}-1
2^n - 1 || -1+2^n
3x^2+2x || x(3x+2)
\frac{x}{x+1} || 1-\frac{1}{x+1}
\sqrt{x^2} || |x|
x^{\frac{1}{2}} || \sqrt{x}
\sin^2 x || (\sin x)^2
\sin^2 x || 1-\cos^2 x
\tan\theta || \frac{\sin\theta}{\cos\theta}
2\sin x\cos x || \sin 2x
y=2x+1 || 2x-y+1=0
y=2x+1 || y-1=2x
y=2x+1 || y = 1+2x
x^2+y^2=4 || x^{2}+y^{2}-4=0
\frac{x^2}{4}+\frac{y^2}{3}=1 || 3x^2+4y^2=12
\frac{x^2}{4}+\frac{y^2}{3}=1 || \dfrac{x^{2}}{4}+\dfrac{y^{2}}{3}=1
y^2=4x || y^{2}=4x
(x-1)^2+(y-2)^2=9 || (x - 1)^2 + (y - 2)^2 = 3^2
(1,2) || (1, 2)
(1,2) || \left( 1, 2 \right)
(1,2) || (1;2)
(1,2) || x=1,y=2
(1,2) || (x,y)=(1,2)
(1,2) || \langle 1, 2\rangle
(1,2) || A(1,2)
(1,2) || (1.0, 2.0)
(1,2) || （1，2）
(\frac{1}{2},3) || (0.5, 3)
(\frac{1}{2},3) || (1/2,3)
(1,2),(3,4) || \{(1,2),(3,4)\}
(1,2),(3,4) || (1,2) and (3,4)
(1,2),(3,4) || (1,2)或(3,4)
(1,2,3) || (1, 2, 3)
(1,2,3) || x=1, y=2, z=3
[1,2] || [1, 2]
[1,2] || 1\le x\le 2
[1,2] || \{x|1\le x\le 2\}
[1,2] || 1≤x≤2
(-1,1) || |x|<1
(-\infty,-1)\cup(1,\infty) || |x|>1
(-\infty,0) || x<0
(0,+\infty) || (0,\infty)
(0,+\infty) || x>0
(0,+\infty) || \{x : x > 0\}
(0,+\infty) || \{x\mid x>0\}
(0,+\infty) || m>0
\{1\} || 1
1 || \{1\}
\{1,2\} || 1 or 2
\{1,2\} || x=1 or x=2
\{1,2\} || x \in \{1,2\}
\text{no solution} || \text{No solution}
\text{no real solutions} || \text{No real solutions}
\text{无解} || 无解
\text{True} || true
\text{yes} || Yes
\text{(B)} || B
\text{B} || B
\text{B} || (B)
B || \textbf{B}
AC || AC
\text{AC} || AC
\text{AC} || A,C
ABD || ABD
①③ || ①③
60^\circ || 60
60^\circ || 60°
60^\circ || 60 \text{ degrees}
60^\circ || \angle A = 60^\circ
60^\circ || 60度
60 || 60^\circ
3:2 || 3 : 2
3:2 || 6:4
3:2 || 3∶2
3:2 || \frac{3}{2}
\frac{3}{2} || 3:2
1:2:3 || 1 : 2 : 3
12:30 || 12:30
12:30 \text{ PM} || 12:30 PM
12:30 \text{ PM} || 12:30 p.m.
\$12.50 || 12.50
\$12.50 || \$12.5
\$12.50 || 12.50 dollars
\$12.50 || $12.50
12.5 || \$12.50
12.50 || 12.5元
12 || 12 dollars
120 || 120\text{ km/h}
120 || 120 km per hour
120 || 120 公里
120 || 120人
120 || 120 people
120 || 120 \text{ people}
120 || 120 students
120 || 120 square meters
120 || 120 m²
120 || 120㎡
120 || 120 cubic cm
120 || 120 \mathrm{cm}^3
120 || 120\ \mathrm{cm^3}
120 || 120 \text{ cm}^3
120 || 120 \, \text{cm}^{3}
120 || 120\text{ cm}^{2}
120 || 120 (cm^2)
120 || 120（平方厘米）
120 || 120\text{(cm)}
25\% || 25
25\% || 0.25
25\% || \frac{1}{4}
25\% || 25 percent
25\% || 25 \%
0.25 || 25\%
\frac{1}{4} || 25%
1000000 || 1 million
1000000 || 10^6
1,000,000 || 1000000
1,000,000 || 10^{6}
3.0 \times 10^8 || 3 \times 10^8
3.0 \times 10^8 || 3e8
3.0 \times 10^8 || 3.0 * 10^8
3.0 \times 10^8 || 3.0 × 10^8
3.0 \times 10^8 || 3.0 \cdot 10^{8} \text{ m/s}
1.5e-5 || 1.5 \times 10^{-5}
1.5e-5 || 0.000015
\begin{pmatrix}1\\2\end{pmatrix} || \begin{bmatrix}1\\2\end{bmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} || \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} || \left(\begin{array}{c}1\\2\end{array}\right)
3+2i || 2i+3
3+2i || 3+2\mathrm{i}
3+2i || z=3+2i
i || \mathrm{i}
\pm 3 || 3, -3
\pm 3 || x=\pm 3
\pm 3 || 3 或 -3
3,-3 || \pm3
1, 2, 3 || 1,2,3
1, 2, 3 || \{1, 2, 3\}
1, 2, 3 || 3, 2, 1
x=1 || 1
x=1,x=2 || 1,2
x=1 \text{ or } x=2 || x=1, 2
a=1,b=2 || a = 1, b = 2
a=1,b=2 || b=2,a=1
k\pi || k\pi (k\in\mathbb{Z})
2k\pi+\frac{\pi}{3} || \frac{\pi}{3}+2k\pi
2k\pi+\frac{\pi}{3} || 2k\pi+\frac{\pi}{3}, k\in \mathbb{Z}
n! || n!
x>3 || x > 3
x>3 || (3, \infty)
x>3 || 3<x
a \ge 2 || a \geq 2
a \ge 2 || a≥2
a \ge 2 || [2, +\infty)
2 < x < 3 || (2,3)
x \ne 1 || x \neq 1
x \le -1 \text{ or } x \ge 2 || (-\infty,-1] \cup [2,\infty)
f(x) = x^2 || x^2
f(x) = x^2 || y = x^2
x^2 || f(x) = x^2
\frac{1}{2} || P = \frac{1}{2}
\frac{1}{2} || P(A)=1/2
\frac{1}{2} || 50\%
0.5 || \frac{1}{2}
2x || 2x
2x || x \cdot 2
2xy || 2yx
xy || yx
a^2b || ba^2
-x || -1x
x-y || -(y-x)
6\text{ cm} || 6cm
6\text{ cm} || 6 centimeters
6\text{ cm} || 6
6\text{ cm}^2 || 6 \text{ cm}^2
100\pi || 100 \pi \text{ cm}^2
100\pi || 314.159265
\frac{5}{3}\pi || \frac{5\pi}{3}
72 || x = 72 \text{ dollars}
72 || \text{Total: } 72
72 || Total = 72
72 || 总共72元
72 || 一共72个
72 || 共72元
72 || 答：72元
72 || 答案是72
72 || 72 clips
72 || 72 clips.
72 || \$72.00
72 || 72.00
72 || 72 (dollars)
72 || 72\ dollars
72 || 72\,\text{dollars}
72 || $72$ dollars
72 || \(72\) dollars
72 || 72 US dollars
72 || US\$72
72 || USD 72
72 || ￥72
72 || 72 cents
72 || 72 hours
72 || 72 hrs
72 || 72 eggs per day
72 || 72\text{ eggs/day}
72 || 72 years old
72 || 72岁
72 || 72页
72 || 72千克
72 || 72千克/平方米
72 || 72立方米
72 || 72 m^3
72 || 72 m³
72 || 72 in
72 || 72 in.
72 || 72 ft.
72 || 72 sq ft
72 || 72\text{ sq ft}
72 || 72 lbs
72 || 72 mL
72 || 72 N
72 || 72 J
72 || 72 \text{ rpm}
72 || 72 \text{ points}
72 || 72 \text{ different ways}
72 || 72 \text{ distinct arrangements}
72 || 72^{\circ}
72 || 72^\circ C
72 || 72°C
72 || 72℃
72 || 72 degrees Celsius
72 || \angle ABC = 72^\circ
72 || 72 \%
-5 || -5^\circ C
-5 || -5\text{ m}
-5 || -5米
1.5 || 1.5小时
1.5 || 1.5 hours
1.5 || 3/2
1.5 || 1\frac{1}{2}
1.5 || 1 \frac{1}{2}
1.5 || 1 1/2 hours
\frac{1}{3} || 1/3
\frac{1}{3} || \frac{1}{3} cup
\frac{2}{5} || 40\%
7:15 || 7:15
7:15 || 7:15 a.m.
10:30 \text{ a.m.} || 10:30 AM
10:30 \text{ a.m.} || 10:30 \text{ a.m.}
10:30 \text{ a.m.} || 10:30\,\text{a.m.}
(2,\frac{\pi}{3}) || \left(2,\frac{\pi}{3}\right)
(2,\frac{\pi}{3}) || (2, π/3)
\left( 3, \frac{\pi}{2} \right) || (r,\theta)=(3,\frac{\pi}{2})
p - q || -q+p
p - q || p-q
\frac{14}{3} || 4\frac{2}{3}
\frac{14}{3} || 14/3
\text{Evelyn} || Evelyn
\text{Evelyn} || \mathrm{Evelyn}
11\sqrt2 || 11\sqrt{2}
x=5 || x = 5
10080 || 10,080
10080 || 10{,}080
10,\!080 || 10080
58,500 || 58500
58500 || 58 500
-2+7i || 7i-2
1,-2 || -2,1
1,-2 || -2 \text{ and } 1
1,-2 || x=1 \text{ or } x=-2
1,-2 || x=1,\ x=-2
3 \pm 2 \sqrt{2} || 3+2\sqrt{2},\ 3-2\sqrt{2}
\{1\pm\sqrt{5},-2\} || 1+\sqrt{5}, 1-\sqrt{5}, -2
[-2,7] || x \in [-2,7]
x \in [-2,7] || -2 \le x \le 7
(0,9)\cup(9,36) || (0,9) \cup (9,36)
(0,9)\cup(9,36) || 0<x<9 \text{ or } 9<x<36
(-\infty, 0) || (-∞, 0)
(3,4] || 3<x\le4
\frac{3}{2} || x = \frac{3}{2}
\sqrt{51} || \sqrt{51} \approx 7.14
6 - 5i || 6-5i
2k || 2k
2220 || 2220
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} || \begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{pmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} || \left(\begin{matrix} -\frac{1}{3} \\ \frac{2}{3} \end{matrix}\right)
x^3+3x-6 || x^{3} + 3x - 6
(x - 1)(x+2) || (x+2)(x-1)
144x^2 || 144x^{2}
-\frac{1}{2} || -\dfrac12
-\frac{1}{2} || - \frac{1}{2}
4.5 || \frac{9}{2}
4.5 || 4\frac12
52_8 || 52_{8}
2516_8 || 2516_8
\frac{1}{2}\sqrt{3} || \frac{\sqrt{3}}{2}
\frac{\pi}{6} || \frac{1}{6} \pi
5\sqrt{5} || 5 \cdot \sqrt{5}
2^{8} || 256
\frac{5}{13} || \frac{5}{13}
120^\circ || 120^{\circ}
120^\circ || 120 ^\circ
\text{odd} || odd
\text{odd} || \text{Odd}
\text{odd function} || odd function
\frac{x+2}{7} || \frac{1}{7}x + \frac{2}{7}
\frac{x+2}{7} || (x+2)/7
y=\frac{1}{2}x || y=x/2
y=\frac{1}{2}x || x-2y=0
x+2y-3=0 || y = -\frac{1}{2}x+\frac{3}{2}
x=-\frac{3}{2} || x = -1.5
5x-y+2=0 || 5x - y = -2
\left(\frac{1}{\mathrm{e}},1\right) || (e^{-1},1)
\left(\frac{1}{\mathrm{e}},1\right) || (\frac{1}{e},1)
1-5\mathrm{i} || 1-5i
[0,2] || \{x|0\le x\le2\}
$[0,2]$ || [0,2]
\left(3,0\right)$;$\sqrt{3} || (3,0); \sqrt{3}
8;$-2$ || 8；-2
-3 m || -3m
10和11之间 || 10和11之间
若x减小,则y也减小 || 若x减小，则y也减小
x\geq -3, x\neq 0 || x\ge-3 \text{ and } x\ne0
a=\frac{1}{2}, Q(2,-2) || a=\frac12, Q(2,-2)
π/2 || \frac{\pi}{2}
2.7×10^9 || 2.7 \times 10^9
2.7×10^9 || 2700000000
125° || 125
125° || 125^\circ
25 \% || 25%
1:9 || 1:9
1:9 || \frac{1}{9}
第一象限 || 第一象限。
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} || \frac{1}{3}\begin{pmatrix} -1 \\ 2 \end{pmatrix}
\begin{pmatrix} 2 \\ 4 \end{pmatrix} || 2\begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix} -2 \\ 4 \end{pmatrix} || -\begin{pmatrix} 2 \\ -4 \end{pmatrix}
\{1\}\cup(2,3) || (2,3)\cup\{1\}
(-\infty,\infty) || \text{all real numbers}
(-\infty,\infty) || x \in \mathbb{R}
\mathbb{R} || 全体实数
x+y<1 || y<1-x
x+y<1 || 1>x+y
x+y<1 || 2x+2y<2
C. {x \mid-3<x<4} || C
C. {x \mid-3<x<4} || (-3,4)
C. 1-\mathrm{i} || 1-i
10 || 10 \text{ cm}^{2}
10 || 10\mathrm{cm}
10 || 10\ cm
10 || 10 cm.
10 || 10 cubic units
10 || 10 \text{ cubic units}
10 || 10 dollars.
10 || \text{\$}10
10 || \text{10 dollars}
10 || \text{10 cm}
10 || \textbf{10 cm}
10 || **10**
10 || *10*
10 || `10`
10 || "10"
10 || '10'
10 || “10”
10 || 10。
10 || 10，
10 || 10;
10 || ( 10 )
10 || x=10.
10 || \therefore x = 10
10 || \Rightarrow x=10
10 || \text{so } x=10
10 || n = 10 \text{ terms}
\frac{1}{2} || \frac{1}{2}\text{ mile}
\frac{1}{2} || \frac{1}{2} mile
\frac{1}{2} || 1/2 mile
\frac{1}{2} || 1/2小时
\frac{1}{2} || \frac{1}{2}小时
\frac{a}{b} || a/b
\frac{a+b}{2} || (a+b)/2
\frac{a+b}{2} || \frac{1}{2}(a+b)
\frac{a+b}{2} || 0.5a+0.5b
a^2-b^2 || (a+b)(a-b)
-x^2+4 || 4-x^2
\frac{2n}{n+1} || 2-\frac{2}{n+1}
x^2-2x+1 || (x-1)^2
3^{x} || 3^x
\log_3 5 || \frac{\lg 5}{\lg 3}
\log_{2}3 || \log_2{3}
\log_{2}3 || \log_2(3)
\arctan 2 || \tan^{-1} 2
\arcsin\frac{1}{3} || \sin^{-1}\left(\frac{1}{3}\right)
\frac{3}{5}+\frac{4}{5}i || \frac{3+4i}{5}
-\sqrt{3}i || -i\sqrt{3}
\frac{\sqrt{10}}{5} || \sqrt{\frac{2}{5}}
\frac{\sqrt{10}}{5} || \frac{2}{\sqrt{10}}
\sqrt{3}-1 || -1+\sqrt{3}
\sqrt{3}-1 || \frac{2}{\sqrt{3}+1}
4\sqrt{5} || \sqrt{80}
\frac{16\pi}{3} || \frac{16}{3}\pi
\frac{16\pi}{3} || 16π/3
(\sqrt{3},1) || (√3, 1)
(-1,\frac{3}{2}) || (-1,1.5)
(-1,\frac{3}{2}) || x=-1, y=\frac{3}{2}
(-\infty,-1]\cup[3,+\infty) || (-\infty,-1]\cup[3,\infty)
(-\infty,-1]\cup[3,+\infty) || x\le-1 \text{ or } x\ge3
(-\infty,-1]\cup[3,+\infty) || x≤-1或x≥3
(-\infty,-1]\cup[3,+\infty) || \{x|x\leq-1 \text{ or } x\geq3\}
(-\infty,-1]\cup[3,+\infty) || \{x|x\leq-1或x\geq3\}
(1,+\infty) || a>1
(1,+\infty) || a \in (1,+\infty)
(1,+\infty) || \{a|a>1\}
[1,4) || 1\leqslant x<4
m=2 || 2
m=2 || m = 2
2 || m=2
m=2,n=3 || (2,3)
S_n=n^2 || n^2
a_n=3^{n-1} || a_n=\frac{3^n}{3}
y=\pm\frac{1}{2}x || y=\frac{1}{2}x, y=-\frac{1}{2}x
y=\pm\frac{1}{2}x || y = \pm \frac{x}{2}
\frac{x^2}{9}-\frac{y^2}{16}=1 || 16x^2-9y^2=144
x=1 || x-1=0
1:\sqrt{3} || \frac{1}{\sqrt{3}}
20% || 20\%
20% || 0.2
0.2 || 20%
3.14 || 3.140
1.20 \times 10^{-5} || 1.2e-5
1.20 \times 10^{-5} || 1.2 \cdot 10^{-5}
1.20 \times 10^{-5} || 0.000012
2^{10}-1 || 1023
e^{-1} || \frac{1}{e}
2e || 2\mathrm{e}
\frac{e}{2} || e/2
0.\dot{3} || 1/3
12\frac{1}{2} || 12.5
-1\frac{1}{2} || -1.5
-1\frac{1}{2} || -\frac{3}{2}
平行四边形 || 平行四边形
充分不必要条件 || 充分不必要条件
\text{isosceles} || isosceles
\text{right triangle} || right triangle
2,3 || 2\text{ 和 }3
2,3 || \{2\}, \{3\}
2,3 || p=2, q=3
\sqrt{2},-\sqrt{2} || \pm\sqrt{2}
0,1,2 || \{0,1,2\}
x^2+C || C+x^2
x^2+C || x^2+c
\pi R^2 || R^2\pi
"""
MORE_WRONG = r"""
9 || 9x
9 || 9!
9 || 9^2
9 || \frac{9}{2}
9 || 9, 10
9 || 9 \text{ or } 10
9 || 9 or so
9 || \text{not } 9
9 || \neq 9
9 || >9
9 || 9+
9 || 9%%
9 || -9
9 || 99
9 || 9 9
9 || 9.9
9 || 9 \text{ if } x>0
9 || \text{approximately } 9
9 || \approx 9
9 || ≈9
9 || \geq 9
9 || x \ge 9
9 || 9 \pm 1
9 || [9,10]
9 || (9,10)
9 || 9?
9 || ?9
9 || 9i
9 || 9 \bmod 10
9 || 9_{10}
9 || \{8,9\}
9 || A: 9, B: 8
9 || 3 \times 3
9 || 10-1
9 || 18/2 + 0
9 || 9 = 8
9 || 8 = 9
9 || x = 8
9 || 9 and 8
9 || 0.9
9 || 9e1
9 || 9\text{ billion}
9 || 9 hundred
9 || 9 \text{ to } 10
9 || 9-10
9 || 9~10
9 || 9 \text{ ft } 3 \text{ in}
9 || 9'3"
9 || between 8 and 10
9 || 9 or more
9 || at most 9
9 || I don't know
9 || 9 (or 10)
9 || 9\text{ (not }10)
9 || 9;8
\frac{3}{4} || \frac{4}{3}
\frac{3}{4} || 0.7
\frac{3}{4} || 3
\frac{3}{4} || 34
\frac{3}{4} || \frac{3}{4}x
\frac{3}{4} || 7.5%
\sqrt{2} || 2
\sqrt{2} || 1.4
\sqrt{2} || -\sqrt{2}
\sqrt{2} || \pm\sqrt{2}
\sqrt{2} || \sqrt[3]{2}
2\pi || 2
2\pi || 6.28
2\pi || \pi
2\pi || 2p
e^2 || 7.389
e^2 || e
\ln 2 || \log 2
\ln 2 || 0.693
x+1 || x-1
x+1 || y+1
x+1 || x
x+1 || 1
x^2 || 2x
x^2 || x2
x_1 || x_2
x_1 || x
(1,2) || (2,1)
(1,2) || (1,2,3)
(1,2) || [1,2]
(1,2) || 1
(1,2) || 2
(1,2) || (1,3)
(1,2) || y=1,x=2
[1,2] || (1,2)
[1,2] || 1<x<2
[1,2] || 1
[1,2] || \{1,2\}
(0,\infty) || [0,\infty)
(0,\infty) || x \ge 0
(0,\infty) || x<0
\{1,2\} || \{1,2,3\}
\{1,2\} || \{1\}
\{1,2\} || 1
\{1,2\} || 1<x<2
\emptyset || 0
\emptyset || \{0\}
\text{yes} || \text{no}
\text{yes} || y
\text{yes} || sey
\text{yes} || \text{yes or no}
\text{yes} || \text{not yes}
\text{(B)} || A
\text{(B)} || \text{(A) or (B)}
\text{(B)} || AB
AC || A
AC || CA B
AC || AD
ABD || AB
ABD || ABCD
60^\circ || 61^\circ
60^\circ || 60 \text{ radians}
60^\circ || 60^\circ \text{ or } 120^\circ
60^\circ || 120^\circ
3:2 || 2:3
3:2 || 3
12:30 \text{ PM} || 12:30 AM
12:30 \text{ PM} || 12:31 PM
\$12.50 || \$12.05
\$12.50 || 12.50 cents
120 || 120\text{ km, }30\text{ m}
120 || 12 0
25\% || 2.5
25\% || 0.025
25\% || 26\%
3.0 \times 10^8 || 3.0 \times 10^9
3.0 \times 10^8 || 3.0
3.0 \times 10^8 || 10^8
3.0 \times 10^8 || 3 \times 10^{-8}
3+2i || 3-2i
3+2i || 3
3+2i || 5
3+2i || 3+2j
i || 1
i || -i
\pm 3 || 3
\pm 3 || -3
1, 2, 3 || 1, 2
1, 2, 3 || 1, 2, 4
1, 2, 3 || 123
1, 2, 3 || 6
x=1 || x=2
x=1 || y=1
x=1,x=2 || 1
a=1,b=2 || a=2,b=1
k\pi || \pi
k\pi || 2k\pi
2x || 2
2x || x
2x || 2y
2xy || 2x
y=2x+1 || y=2x-1
y=2x+1 || 2x
y=2x+1 || x=2y+1
x^2+y^2=4 || x^2+y^2=16
x^2+y^2=4 || 4
x^2+y^2=4 || x^2-y^2=4
x>3 || x<3
x>3 || x \ge 3
x>3 || 3
x>3 || (-\infty,3)
x \ne 1 || x=1
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}1&2\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} || 1
n! || n
2^n || 2n
2^n || n^2
\log_2 3 || \log_3 2
\frac{1}{2} || \frac{1}{2}, \frac{1}{3}
\sin x || \cos x
\sin x || sin
6\text{ cm} || 6\text{ m}
6\text{ cm} || 6\text{ kg}
6\text{ cm} || 6\text{ cm}^2
Paris || London
Paris || Paris or London
Paris || Pairs
cat || act
Ann || Nan
72 || 72 or 73
72 || 72 \text{ no}
72 || 72 \text{ incorrect}
72 || 72 \text{ is the wrong answer}
72 || 72?
72 || 72 元 5 角
72 || 72 dollars and 50 cents
72 || 72, 73
72 || 7 2
72 || 72 minutes 30 seconds
72 || 1 hour 12 minutes 72
72 || 72\text{ remainder }3
72 || 72 r 3
72 || 72 \text{ less}
72 || 72 \times 1
72 || 36 \times 2
72 || 8 \cdot 9
72 || 72 + 0
72 || 70 + 2
72 || 144/2-0
72 || \max(72,71)
72 || \lfloor 72.5 \rfloor
72 || 72x/x
72 || x+72-x
72 || 72^{2-1}
72 || -(-72)+0
72 || 72 \text{ or greater}
72 || <72
72 || not 72
72 || \sim 72
72 || 72\text{ and }73
72 || 72\text{ to }73
72 || 72 - 73
72 || 72–73
72 || (72, 73)
72 || a=72, b=73
72 || x=72 \text{ or } x=73
72 || 72/73
72 || 0.72
72 || 7.2 \times 10^2
72 || 72000
72 || 一共七十二或者七十三
72 || 72个或73个
72 || 72不对
72 || 不是72
72 || 72以内
72 || 大约72
72 || 72多
72 || 72万元
\frac{1}{2} || \frac{1}{2} \text{ or } \frac{1}{3}
\frac{1}{2} || \frac{1}{2}+\frac{1}{3}-\frac{1}{3}
\frac{1}{2} || 1
\frac{1}{2} || 2
\frac{1}{2} || \frac{1}{20}
\frac{1}{2} || \frac{1}{2}\%
\frac{1}{2} || 0.5%
\frac{1}{2} || 1,2
x^2+1 || x^2+1=0
x^2+1 || x^2
x^2+1 || x^2 + 1 + x
x^2+1 || t^2+1
x^2+1 || 2
x=3 || x>3
x=3 || x \ne 3
x=3 || x=-3
(1,2) || (1,2) \text{ or } (2,1)
(1,2) || 12
(1,2) || 1.2
(1,2) || \frac{1}{2}
(1,2) || \{1,2,3\}
1,2 || 1
1,2 || 12
1,2 || (2,3)
1,2 || 1 \le x \le 2
1,2 || [1,2]
\text{east} || west
\text{east} || e
\text{east} || \text{east or west}
\text{true} || \text{not true}
\text{true} || false
Tom || Tim
Tom || Tom or Tim
Tom || not Tom
A || B
A || A or B
A || A, B
AB || A
3:4:5 || 3:5:4
3:4:5 || 3:4
60 || \frac{\pi}{3}
60 || 60\pi
\pi || 180
\pi || 180^\circ
\pi || 3
e || 2.718
\sqrt{3} || 1.732
\sqrt{3} || \sqrt{-3}
2\sqrt{3} || \sqrt{6}
2\sqrt{3} || 23
2\sqrt{3} || 2+\sqrt{3}
2\sqrt{3} || 3\sqrt{2}
5\text{ m/s} || 5\text{ m}
5\text{ m/s} || 5\text{ km/h}
5\text{ hours} || 5\text{ minutes}
5\text{ hours} || 300\text{ hours}
\$5 || 5\%
\begin{pmatrix} 2 \\ 4 \end{pmatrix} || \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix} 2 \\ 4 \end{pmatrix} || 3\begin{pmatrix} 1 \\ 2 \end{pmatrix}
\{1\}\cup(2,3) || (2,3)
x+y<1 || x+y>1
x+y<1 || x+y \le 1
x+y<1 || y>1-x
x+y<1 || -x-y<-1
C. 1-\mathrm{i} || D
C. 1-\mathrm{i} || 1+i
10 || 10 \text{ cm or } 20
10 || x=10, 20
10 || 10, 20, 30
10 || 5+5
10 || 2 \cdot 5
10 || 10\cdot 10^1
10 || 1 \times 10^2
10 || \binom{5}{2}
10 || ten
10 || 10 \div 2
10 || 10 \text{ cm by } 20 \text{ cm}
10 || 10 by 20
10 || 10 × 20
10 || 10:20
10 || \frac{10}{3}
10 || 10\frac{1}{2}
10 || 10 1/2
10 || 1010
10 || 10^{10}
10 || 10_2
10 || log 10
10 || \sqrt{10}
10 || -10
10 || |10|
10 || 10\pi
10 || 10 dozen
10 || 10k
10 || 10K
10 || 10 pairs of 2
10 || at least 10
10 || up to 10
10 || 10 (approximately)
10 || 10 \text{ (approximately)}
10 || roughly 10
10 || 10ish
10 || 10 - wait, 12
10 || 10 \text{ wait } 12
10 || 12, no, 10
10 || not sure, 10
10 || 10 maybe
\frac{a}{b} || \frac{b}{a}
\frac{a}{b} || ab
\frac{a+b}{2} || a+b/2
x^2-2x+1 || (x+1)^2
3^x || x^3
\arctan 2 || \frac{1}{\tan 2}
\arcsin\frac{1}{3} || \frac{1}{3}
\sqrt{3}-1 || 1-\sqrt{3}
\sqrt{3}-1 || 0.732
m=2,n=3 || m=3,n=2
m=2,n=3 || (3,2)
m=2 || n=2
y=\pm\frac{1}{2}x || y=\frac{1}{2}x
y=\pm\frac{1}{2}x || y=\pm 2x
[1,4) || 1<x\le4
(1,+\infty) || a<1
(1,+\infty) || 1
S_n=n^2 || S_n=n
平行四边形 || 四边形
充分不必要条件 || 必要不充分条件
充分不必要条件 || 充要条件
\text{isosceles} || scalene
\text{right triangle} || triangle
0,1,2 || 0,1
0,1,2 || 0 \le x \le 2
0,1,2 || [0,2]
20% || 0.02
20% || 20元
12\frac{1}{2} || 6
-1\frac{1}{2} || -\frac{1}{2}
-1\frac{1}{2} || 1\frac{1}{2}
2e || 2
\pi R^2 || \pi r^2
x+1 || X+1
"""


KINDS_RIGHT = r"""
\left( 3, \frac{\pi}{2} \right) || r = 3, \theta = \frac{\pi}{2}
1,-2 || x_1=-2, x_2=1
52_8 || (52)_8
1011_2 || 1011_{(2)}
0.\overline{3} || 0.\bar{3}
0.1\overline{6} || 0.1666\ldots
0.1\overline{6} || 0.1666...
\frac{x+2}{7} || f^{-1}(x)=\frac{x+2}{7}
x = 5 || \text{x = 5}
3\frac{3}{4} || 3又\frac{3}{4}
3\frac{3}{4} || 3又3/4
\sqrt[3]{3} || \sqrt[3]3
\frac{\pi}{4} || \frac π4
\binom{n}{2} || \binom n2
11,\! 111,\! 111,\! 100 || 11111111100
2 \text{ and } 3 || 2与3
(2,3),(3,2) || (x,y)\in\{(2,3),(3,2)\}
(1,1,1) || x=y=z=1
\mathbb{R} || R
\mathbb{R} || x\in R
\frac{dy}{dx}=2x || 2x
\frac{dy}{dx}=2x || y'=2x
f'(x)=2x || y'=2x
g(f(x))=x^2+1 || x^2+1
\text{no solution} || \text{no solutions}
e^{i\pi/4} || \frac{\sqrt2}{2}+\frac{\sqrt2}{2}i
B || \textbf{(B)}\ 42
B || 故选B
①②④ || ②、①、④
2 || 最小值为 $2$
12 || \int_0^1 24x\,dx=12
5 || 5 \times 1 = 5
8.7e8 || 8.7 \times 10^{8} \mathrm{~cm} / \mathrm{s}
8.7e8 || 8.7 \times 10^{8} \mathrm{~cm} \mathrm{~s}^{-1}
8.7e8 || 8.7\times 10^{8}\,\mathrm{cm\,s^{-1}}
8.7e8 || 8.7 \times 10^8\ \text{cm}\cdot\text{s}^{-1}
5\text{ m/s} || 5 \frac{\text{m}}{\text{s}}
10 \text{ m/s}^2 || 10 \text{ m s}^{-2}
25\text{ kg}\cdot\text{m}^2 || 25\ \mathrm{kg\,m^2}
230 || 230\ \mu\text{m}
230 || 230\,\Omega
230 || 230 \text{ Å}
8\text{ inches} || 8"
25 || 25盏
6 || 6 \text{ solutions}
3:5 || 3\colon5
x>2y || x-2y>0
[0,1]\cup\{2\} || 0\le x\le1 \text{ or } x=2
\{0\}\cup[2,\infty) || x=0 \text{ or } x\ge2
\frac{1}{3} || \frac{AB}{CD}=\frac{2}{6}=\frac13
\frac{1}{3} || \vec{a}\cdot\vec{b}=\frac13
2\sqrt{3} || 面积为2\sqrt3
(4,-3) || 顶点为(4,-3)
(4,-3) || \text{Vertex: } (4,-3)
\vec{a}=(1,2) || (1,2)
A(1,2),B(3,4) || B(3,4), A=(1,2)
45\text{ mph} || 45 mph
\text{VW} || VW
x=2, y=3 || \left\{\begin{array}{l} x=2 \\ y=3 \end{array}\right.
x=2, y=3 || \begin{cases}x=2,\\y=3\end{cases}
-2 || 负2
3斤 || 3
12 \text{ gm} || 12  gm
"""
KINDS_WRONG = r"""
90^\circ || 90'
8\text{ inches} || 8'
5元 || 5分钱
3斤 || 3千克
10 \text{ m/s}^2 || 10\text{ s}^{-2}
25\text{ kg}\cdot\text{m}^2 || 25\text{ kg m}
\varnothing || \{\emptyset\}
\frac{dy}{dx}=2x || \frac{dy}{dx}=x
\frac{dy}{dx} || \frac{dx}{dy}
f'(x)=2x || f(x)=2x
\frac{n(n+1)}{2} || \sum_{j=1}^n j
3x^2 || \frac{d}{dx} x^3
15\sqrt{2} || 3\sqrt{2}\cdot5
-1 || i^2
(1,1) || x=y=z=1
(1,1,1) || x=y=z=2
10 || 10 factorial
10 || 10 dozens
10 || 10 halves
10 || 10个左右
12 || 12次方
101_2 || 101_{10}
6 || 6\ldots
1 || 1^{100}
3\sqrt{13} || 3\sqrt{13}\approx 11.9 \text{ or } 12
x>2 || 2x>4
x>2 || x-2>0
[0,1]\cup\{2\} || 0\le x\le1 \text{ or } x=3
\{0\}\cup[2,\infty) || x=0 \text{ and } x\ge2
\frac{1}{3} || \frac{1}{AB}=\frac13
\frac{1}{3} || 概率不是\frac13
\frac{1}{3} || 概率至少为\frac13
13 || 错误答案是13
13 || 如果是13
13 || -x=13
13 || 13次幂
13 || \text{Not: } 13
A(1,2),B(3,4) || A(3,4),B(1,2)
12 || 12个以外
0.1\overline{6} || 0.1666
B || 不选B
①② || ①或②
x=y || y'=x
"""


def of_lines(text: str) -> list[tuple[str, str]]:
    pairs = (line.split(" || ") for line in text.strip().splitlines())
    return [(gold, answer) for gold, answer in pairs]


RIGHT["mixed"] = of_lines(MORE_RIGHT)
WRONG["mixed"] = of_lines(MORE_WRONG)
RIGHT["by kind"] = of_lines(KINDS_RIGHT)
WRONG["by kind"] = of_lines(KINDS_WRONG)
